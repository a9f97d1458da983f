"""The frame tables of bare MP3 and ADTS streams, held against FFmpeg's demuxers and against damage."""

import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import encode, glide_at

from index.sound.mpegframes import after_id3, first_frame, frame_table

LIMIT_S = 1e5


def table_of(data: bytes, kind="mp3", limit_s=LIMIT_S):
    return frame_table(io.BytesIO(data), kind, limit_s)


@pytest.fixture(scope="module")
def mp3() -> bytes:
    return encode("mp3", glide_at(44_100, 8, 2), 44_100)


@pytest.fixture(scope="module")
def bare(mp3) -> bytes:
    """Frames only: no tag, no counting header."""
    return mp3[table_of(mp3).offsets[0] :]


@pytest.mark.parametrize(
    ("name", "rate", "bit_rate", "options"),
    [("mp3", 44_100, 128_000, None), ("mp3", 44_100, 320_000, None), ("mp3", 48_000, 64_000, None),
     ("mp3", 22_050, 32_000, None), ("mp3", 8_000, 8_000, None), ("mp3", 44_100, None, {"q": "4"}),
     ("adts", 44_100, 128_000, None), ("adts", 16_000, 24_000, None)],
)  # fmt: skip
def test_the_frames_are_ffmpegs_packets(name, rate, bit_rate, options):
    data = encode(name, glide_at(rate, 8), rate, bit_rate, options)
    table = table_of(data, "mp3" if name == "mp3" else "aac")
    with av.open(io.BytesIO(data), format="mp3" if name == "mp3" else "aac") as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    assert table.missing is None
    assert list(zip(table.offsets, table.sizes, strict=True)) == packets
    assert table.sample_rate == rate


def test_lames_delay_and_padding_are_left_out(mp3):
    table = table_of(mp3)
    assert table.skip == 576 + 529
    assert table.duration_s == pytest.approx(8, abs=1e-9)


def test_variable_bit_rate(monkeypatch):
    """Frames of many sizes: quiet, then noise."""
    sound = np.zeros((1, 44_100 * 6))
    sound[:, 44_100 * 3 :] = np.random.default_rng(0).standard_normal((1, 44_100 * 3)) * 0.2
    frames = [encode("mp3", sound[:, start : start + 44_100], 44_100, rate)
              for start, rate in ((0, 32_000), (44_100, 320_000), (0, 64_000))]  # fmt: skip
    tables = [table_of(part) for part in frames]
    data = b"".join(part[table.offsets[0] :] for part, table in zip(frames, tables, strict=True))
    table = table_of(data)
    assert len(set(table.sizes)) > 3
    assert len(table.offsets) == sum(len(part.offsets) for part in tables)


@pytest.mark.parametrize("around", [b"TAG" + b"x" * 125, bytes(5000), b"APETAGEX" + bytes(300), b"\xff" * 50])
def test_tags_and_padding_behind_are_no_loss(bare, around):
    assert table_of(bare + around).missing is None
    assert len(table_of(bare + around).offsets) == len(table_of(bare).offsets)


def test_tags_in_front_are_passed(bare):
    tag = b"ID3\x04\x00\x00\x00\x00\x07\x68" + bytes(1000)
    footed = b"ID3\x04\x00\x10\x00\x00\x00\x10" + bytes(16) + b"3DI\x04\x00\x10\x00\x00\x00\x10"
    for front in (tag, tag + tag, footed, tag + bytes(3000)):
        table = table_of(front + bare)
        assert table.offsets[0] == len(front)
    assert after_id3(io.BytesIO(tag + bare)) == 1010


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_damage_costs_the_frames_it_hits_and_no_more(bare, data):
    at = data.draw(st.integers(1000, len(bare) - 3000))
    length = data.draw(st.integers(1, 1500))
    table, whole = table_of(bare[:at] + bytes(length) + bare[at + length :]), table_of(bare)
    assert len(table.offsets) >= len(whole.offsets) - length // 400 - 3
    assert set(table.offsets[-3:]) <= set(whole.offsets)


def test_a_cut_last_frame_is_missing(bare):
    for lost in (1, 5, 100, 410):
        assert f"lacks {lost} of" in table_of(bare[:-lost]).missing
    assert table_of(bare + b"\xff\xfb").missing == "the last frame is cut"


def test_an_adts_header_that_is_cut_anywhere_is_missing():
    data = encode("adts", glide_at(44_100, 2), 44_100)
    last = table_of(data, "aac").offsets[-1]
    for bytes_left in range(1, 8):
        assert table_of(data[: last + bytes_left], "aac").missing


def test_a_header_that_counts_more_frames_than_there_are(mp3):
    table = table_of(mp3)
    assert table_of(mp3[: table.offsets[-2]]).missing is None  # two are forgiven
    assert "counts" in table_of(mp3[: table.offsets[-3]]).missing


def test_a_vbri_header_counts_too(bare):
    first = table_of(bare).sizes[0]
    header = bytearray(bare[:first])
    header[36:40], header[50:54] = b"VBRI", (10_000).to_bytes(4, "big")
    assert "counts 10000 frames" in table_of(bytes(header) + bare).missing
    header[50:54] = len(table_of(bare).offsets).to_bytes(4, "big")
    assert table_of(bytes(header) + bare).missing is None


def test_scanning_stops_past_the_limit(bare):
    table = table_of(bare * 20, limit_s=10)
    assert 10 < table.duration_s < 10.2
    assert table.missing is None


def test_layers_one_and_two():
    for header, size, samples, codec in (
        (b"\xff\xfd\x80\x04", 144 * 128_000 // 44_100, 1152, "mp2"),
        (b"\xff\xff\x44\x04", 12 * 128_000 // 48_000 * 4, 384, "mp1"),
    ):
        table = table_of((header + bytes(size - 4)) * 5)
        assert (table.codec, table.frame_samples, list(table.sizes)) == (codec, samples, [size] * 5)


def test_no_frames_no_table():
    for content in (b"", b"text" * 1000, b"\xff\xfb" * 1000, bytes(100_000)):
        assert table_of(content) is None
        assert first_frame(io.BytesIO(content), "aac") is None


def test_a_file_made_to_be_searched_is_given_up(bare):
    with pytest.raises(ValueError, match="more damage than sound"):
        table_of(bare + b"\xff\xfb\x90\x64" * 200_000)
