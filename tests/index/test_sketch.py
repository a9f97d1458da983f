"""Sketches: copies of demo songs are near, whatever was done to them; other songs are not."""

import io

import numpy as np
import pytest
from recordings import SONGS, encode

from index.sound.audio import decode, decode_span
from index.sound.features import dequantise, log_mel, quantise
from index.sound.sketch import WIDTH, sketch

COPY, OTHER = 0.98, 0.92
FILES = sorted(SONGS.glob("*.ogg"))[::20]


def of(data: bytes) -> np.ndarray:
    return sketch(log_mel(decode(data).clips))


@pytest.fixture(scope="module")
def songs() -> list[bytes]:
    return [path.read_bytes() for path in FILES if decode(io.BytesIO(path.read_bytes())).duration_s > 10.5]


@pytest.fixture(scope="module")
def sketches(songs) -> np.ndarray:
    return np.stack([of(song) for song in songs])


def test_it_is_of_length_1(sketches):
    assert sketches.shape == (len(sketches), WIDTH)
    assert sketches.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), 1, rtol=1e-6)
    assert len(sketches) > 6


def test_other_songs_are_not_near(sketches):
    cosines = sketches @ sketches.T
    np.fill_diagonal(cosines, -1)
    assert cosines.max() < OTHER


@pytest.mark.parametrize(
    ("name", "gain_db", "later_s", "bit_rate"),
    [("wav", -6, 0, None), ("wav", -12, 0, None), ("wav", 3, 0, None), ("wav", 0, 0.1, None), ("mp3", -6, 0, 128_000),
     ("mp3", 0, 0, 64_000), ("opus", 0, 0, 32_000), ("m4a", 0, 0, 128_000)],
)  # fmt: skip
def test_copies_are(songs, sketches, name, gain_db, later_s, bit_rate):
    for song, drawn in list(zip(songs, sketches, strict=True))[:4]:
        samples = decode_span(song, later_s, 60.0)[None] * 10 ** (gain_db / 20)
        copy = of(encode(name, np.clip(samples, -1, 1), 48_000, bit_rate))
        assert copy @ drawn > COPY


def test_of_what_the_ledger_keeps_it_is_the_same(songs, sketches):
    mel = log_mel(decode(songs[0]).clips)
    assert sketch(dequantise(quantise(mel))) @ sketches[0] > 0.999


def test_a_gain_is_gone_and_what_never_changes_has_none():
    mel = np.random.default_rng(0).uniform(-40, 0, (2, 1001, 64)).astype(np.float32)
    np.testing.assert_allclose(sketch(mel + 7), sketch(mel), atol=1e-6)
    assert not sketch(np.full((1, 1001, 64), -100, np.float32)).any()
