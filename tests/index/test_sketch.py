"""Sketches: copies of demo songs are near, whatever was done to them; other recordings, of any length, are not."""

import io

import numpy as np
import pytest
from recordings import SONGS, encode

from index.sound.audio import CLIP_S, decode, decode_span, repeat_pad
from index.sound.features import dequantise, log_mel, quantise
from index.sound.sketch import WIDTH, sketch

COPY, OTHER = 0.98, 0.96
FILES = sorted(SONGS.glob("*.ogg"))[::20]


def of(data: bytes) -> np.ndarray:
    drawn = sketch(log_mel(decode(data).clips))
    assert drawn is not None
    return drawn


@pytest.fixture(scope="module")
def songs() -> list[bytes]:
    return [path.read_bytes() for path in FILES if decode(io.BytesIO(path.read_bytes())).duration_s > CLIP_S]


@pytest.fixture(scope="module")
def sketches(songs) -> np.ndarray:
    return np.stack([of(song) for song in songs])


def highest(sketches: np.ndarray) -> float:
    cosines = sketches @ sketches.T
    np.fill_diagonal(cosines, -1)
    return float(cosines.max())


def test_it_is_of_length_1(sketches):
    assert sketches.shape == (len(sketches), WIDTH)
    assert sketches.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), 1, rtol=1e-6)
    assert len(sketches) > 10


def test_other_songs_are_not_near(sketches):
    assert highest(sketches) < OTHER


@pytest.mark.parametrize("seconds", [2.0, 5.5, 9.0])
def test_nor_are_short_ones_that_end_in_the_same_silence(songs, seconds):
    short = [repeat_pad(decode_span(song, 0.0, seconds)) for song in songs]
    drawn = [sketch(log_mel(clip[None])) for clip in short]
    found = [one for one in drawn if one is not None]
    assert len(found) > 10
    assert highest(np.stack(found)) < OTHER


@pytest.mark.parametrize(
    ("name", "gain_db", "later_s", "bit_rate"),
    [("wav", -6, 0, None), ("wav", -12, 0, None), ("wav", 3, 0, None), ("wav", 0, 0.1, None), ("mp3", -6, 0, 128_000),
     ("mp3", 0, 0, 64_000), ("opus", 0, 0, 32_000), ("m4a", 0, 0, 128_000)],
)  # fmt: skip
def test_copies_are(songs, sketches, name, gain_db, later_s, bit_rate):
    for song, drawn in list(zip(songs, sketches, strict=True))[::4]:
        samples = decode_span(song, later_s, 60.0)[None] * 10 ** (gain_db / 20)
        copy = of(encode(name, np.clip(samples, -1, 1), 48_000, bit_rate))
        assert copy @ drawn > COPY


def test_copies_of_short_ones_are(songs):
    for song in songs[::4]:
        samples = decode_span(song, 0.0, 5.5)[None]
        assert of(encode("mp3", samples / 2, 48_000, 128_000)) @ of(encode("wav", samples, 48_000)) > COPY


def test_of_what_the_ledger_keeps_it_is_the_same(songs):
    for song in songs[:4]:
        mel = log_mel(decode(song).clips)
        np.testing.assert_array_equal(sketch(dequantise(quantise(mel))), sketch(mel))


def test_a_gain_is_gone_and_what_never_changes_has_none():
    rng = np.random.default_rng(0)
    mel = rng.uniform(-40, 0, (2, 1001, 64)).astype(np.float32) + rng.uniform(-20, 0, (2, 1001, 1)).astype(np.float32)
    mel += 10 * np.sin(np.arange(1001) / 150)[:, None].astype(np.float32)
    assert sketch(mel + 7) @ sketch(mel) > 0.9999
    tone = np.sin(np.arange(480_000) * 0.04)
    steady = rng.normal(0, 0.1, 480_000)
    for samples in (np.zeros(480_000), tone, steady, np.tile(steady[:48_000], 10)):
        assert sketch(log_mel(samples[None].astype(np.float32))) is None
