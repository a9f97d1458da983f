"""Recordings that cannot be used: every one is an AudioError that says why, soon, and within bounded memory."""

import io
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from recordings import FORMATS, SONGS, encode, glide_at, song_samples

from index.sound import streams
from index.sound.audio import AudioError, decode
from index.sound.mpegframes import frame_table
from index.sound.samples import Span

RATE = 24_000
SECONDS = 13
LARGE = 40_000_000  # bytes of a crafted file


def refused(source, code: str) -> str:
    """The sentence with which `source` is refused, for the reason `code`."""
    with pytest.raises(AudioError) as caught:
        decode(source)
    assert caught.value.code == code, caught.value
    assert len(caught.value.detail) > 20
    return caught.value.detail


def soon_refused(data: bytes, code: str) -> str:
    """The same of a large crafted file, which may cost no more than others."""
    started = time.process_time()
    sentence = refused(data, code)
    assert time.process_time() - started < 0.3
    return sentence


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """The start of a demo song in every format."""
    samples, _ = song_samples()
    files = {name: encode(name, np.repeat(samples[:, : 48_000 * SECONDS : 2], 2, axis=0), RATE) for name in FORMATS}
    files["song"] = sorted(SONGS.glob("*.ogg"))[0].read_bytes()
    return files


class TestNotARecording:
    @pytest.mark.parametrize(
        "content",
        [
            b"just some text\n" * 100,
            b"#EXTM3U\n#EXTINF:10\nfile:///etc/passwd\n",  # FFmpeg's hls demuxer would open that file
            b"ffconcat version 1.0\nfile /etc/passwd\n",
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 97\n",  # sdp: FFmpeg would listen
            b"\x1aE\xdf\xa3" + bytes(500),  # Matroska
            b"MThd\0\0\0\6" + bytes(500),
            b"%PDF-1.7\n" + bytes(500),
            b"\xff\xfb" * 5000,
            bytes(100_000),
            random.Random(5).randbytes(100_000),
            b"RIFF",
        ],
    )
    def test_other_content(self, content):
        assert "not WAV, FLAC, MP3, Ogg (Opus, Vorbis), M4A/MP4, AIFF or AAC" in refused(content, "not_audio")

    def test_nothing(self, tmp_path):
        assert "0 bytes" in refused(b"", "audio_empty")
        assert "there is no file" in refused(tmp_path / "missing.mp3", "audio_missing")
        assert "there is no file" in refused(tmp_path, "audio_missing")
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "audio_missing")

    def test_a_film_without_sound(self):
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=25, width=32, height=32)
            for _ in range(30):
                for packet in stream.encode(av.VideoFrame(32, 32, "yuv420p")):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
        assert "holds video and no audio stream" in refused(file.getvalue(), "audio_no_stream")

    def test_a_codec_that_is_not_accepted(self):
        file = io.BytesIO()
        with av.open(file, "w", format="wav") as container:
            stream = container.add_stream("adpcm_ima_wav", rate=8_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 80_000), np.int16), "s16p", "mono")
            frame.sample_rate = 8_000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
        assert "the codec of the recording (adpcm_ima_wav)" in refused(file.getvalue(), "audio_undecodable")

    def test_no_other_file_is_opened(self):
        with pytest.raises(PermissionError, match="another file"):
            streams._refuse("/etc/passwd", 1, {})


class TestTruncated:
    @pytest.mark.parametrize("name", [*FORMATS, "song"])
    def test_cut_anywhere(self, recordings, name):
        """MP3 here has a header that counts its frames; a bare ADTS stream may be cut between two frames unseen."""
        data = recordings[name]
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        numbers = random.Random(seed)
        places = [
            len(data) - 1,
            len(data) - 5,
            len(data) // 2,
            *(numbers.randrange(2_000, len(data)) for _ in range(12)),
        ]
        for place in places:
            if name == "adts" and _is_frame_end(data, place):
                continue
            detail = refused(data[:place], "audio_truncated")
            assert detail.startswith("the recording was cut off")

    def test_a_flac_in_which_no_place_can_be_found(self, recordings):
        """Some cuts leave FFmpeg's seek without any frame to go by, at the start too."""
        data = recordings["flac"]
        for place in range(2_000, len(data), len(data) // 400):
            assert refused(data[:place], "audio_truncated").startswith("the recording was cut off")

    @pytest.mark.parametrize("name", FORMATS)
    def test_cut_within_the_header(self, recordings, name):
        for place in (1, 5, 9, 20, 40, 100):
            with pytest.raises(AudioError) as caught:
                decode(recordings[name][:place])
            assert caught.value.code in {"audio_truncated", "audio_undecodable", "not_audio"}

    def test_a_bare_mp3(self, recordings):
        """Without a counting header only a cut within a frame shows: the documented limit."""
        table = frame_table(io.BytesIO(recordings["mp3"]), "mp3", 1e4)
        bare = recordings["mp3"][table.offsets[0] :]
        decode(bare)
        assert "lacks 7 of" in refused(bare[:-7], "audio_truncated")
        assert "the last frame is cut" in refused(bare + bare[:2], "audio_truncated")
        between = table.offsets[200] - table.offsets[0]
        assert decode(bare[:between]).duration_s == pytest.approx(200 * 576 / RATE)

    def test_an_id3_tag_longer_than_the_file(self):
        assert "ID3 tag" in refused(b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(100), "audio_truncated")

    def test_mp4_without_its_index(self, recordings):
        data = recordings["m4a"]
        assert "moov" in refused(data[: data.index(b"moov") - 4], "audio_truncated")

    def test_ogg_whose_last_page_does_not_end_the_stream(self, recordings):
        data = recordings["opus"]
        last = data.rindex(b"OggS")
        assert "does not end the stream" in refused(data[:last], "audio_truncated")


class TestForgedHeaders:
    def test_a_wav_that_claims_hours(self, recordings):
        data = bytearray(recordings["wav"])
        at = data.index(b"data")
        data[at + 4 : at + 8] = struct.pack("<I", 0x7FFF_FFFF)
        assert "claims 2,147,483,647 bytes" in refused(bytes(data), "audio_truncated")

    @pytest.mark.parametrize("unknown", [0, 0xFFFF_FFFF])
    def test_a_wav_from_a_pipe_does_not_know_its_length(self, recordings, unknown):
        data = bytearray(recordings["wav"])
        at = data.index(b"data")
        data[at + 4 : at + 8] = struct.pack("<I", unknown)
        assert decode(bytes(data)).duration_s == pytest.approx(SECONDS)

    def test_a_flac_that_claims_hours(self, recordings):
        data = bytearray(recordings["flac"])
        data[22:26] = struct.pack(">I", RATE * 3 * 3600)  # STREAMINFO: low 32 bits of the number of samples
        assert "header claims 10800.00 s" in refused(bytes(data), "audio_truncated")

    def test_a_flac_from_a_pipe_does_not_know_its_length(self, recordings):
        data = bytearray(recordings["flac"])
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        assert decode(bytes(data)).duration_s == pytest.approx(SECONDS)

    def test_an_mp3_that_counts_too_many_frames(self, recordings):
        data = bytearray(recordings["mp3"])
        at = max(data.find(b"Xing"), data.find(b"Info"))
        (frames,) = struct.unpack(">I", data[at + 8 : at + 12])
        data[at + 8 : at + 12] = struct.pack(">I", frames * 100)
        assert f"counts {frames * 100} frames and" in refused(bytes(data), "audio_truncated")

    def test_a_sample_rate_beyond_reason(self, recordings):
        for rate in (1, 4_000_000):
            data = bytearray(recordings["wav"])
            data[24:28] = struct.pack("<I", rate)
            assert f"claims {rate} samples a second" in refused(bytes(data), "audio_undecodable")

    def test_a_hundred_channels(self):
        header = struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            b"RIFF",
            0,
            b"WAVE",
            b"fmt ",
            16,
            1,
            100,
            8_000,
            1_600_000,
            200,
            16,
            b"data",
            0,
        )
        assert "100 channels" in refused(header + bytes(200 * 8_000 * 12), "audio_undecodable")

    def test_time_stamps_that_stand_still(self, recordings):
        """Every Ogg page claims the same instant: given up after 20 s of sound, not at the end of the file."""
        pages = _ogg_pages(recordings["opus"])
        still = b"".join(_ogg_page(page, granule=48_000 * 12 if number > 1 else 0) for number, page in enumerate(pages))
        with pytest.raises(AudioError):
            decode(still)


class TestBombs:
    def test_an_hour_of_silence_in_few_bytes(self):
        """A FLAC byte holds 200 samples here: the three windows and the end are decoded, nothing else."""
        data = encode("flac", np.zeros((1, 48_000 * 1200), np.float32), 48_000)
        assert len(data) < 300_000
        decoded = _decoded_samples(lambda: refused(data, "audio_silent"))
        assert decoded < 48_000 * (3 * 11 + 2)

    def test_memory_does_not_grow_with_the_file(self):
        data = encode("flac", np.zeros((1, 48_000 * 1200), np.float32), 48_000)
        decode(encode("wav", glide_at(8_000, 12), 8_000))
        tracemalloc.start()
        try:
            refused(data, "audio_silent")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 24e6  # three clips of 2 MB, and one span with its marks

    @pytest.mark.parametrize(
        "junk", [b"\xff\xfb\x90\x64", b"\xff", b"\xff\xfb\x90", bytes(1)], ids=["headers", "sync", "chance", "zeros"]
    )
    def test_junk_behind_an_mp3(self, recordings, junk):
        data = recordings["mp3"] + junk * (LARGE // len(junk))
        assert "more damage than sound" in soon_refused(data, "audio_undecodable")

    @pytest.mark.parametrize("junk", [b"x", b"\xff\xfb\x90\x64" * 30], ids=["a byte", "headers"])
    def test_junk_behind_every_second_frame(self, recordings, junk):
        data = recordings["mp3"]
        table = frame_table(io.BytesIO(data), "mp3", 1e4)
        frames = [data[at : at + size] for at, size in zip(table.offsets, table.sizes, strict=True)]
        part = b"".join(frame + junk * (number % 2) for number, frame in enumerate(frames))
        assert "more damage" in soon_refused(b"".join(frames[:9]) + part * (LARGE // len(part)), "audio_undecodable")
        few = b"".join(frames[:9]) + part
        assert decode(few).duration_s == pytest.approx(SECONDS, abs=0.5)

    def test_id3_tags_without_end(self, recordings):
        tag = b"ID3\4\0\0\0\0\0\0"
        assert decode(tag * 50 + recordings["mp3"]).duration_s == pytest.approx(SECONDS, abs=0.1)
        soon_refused(tag * (LARGE // 10) + recordings["mp3"], "not_audio")

    @pytest.mark.parametrize("name", ["wav", "aiff"])
    def test_chunks_without_end(self, recordings, name):
        data, chunk = recordings[name], b"JUNK\0\0\0\0"
        assert decode(data[:12] + chunk * 50 + data[12:] + chunk * 50).duration_s == pytest.approx(SECONDS)
        for bomb in (data[:12] + chunk * (LARGE // 8) + data[12:], data + chunk * (LARGE // 8)):
            assert "over 4,096 chunks" in soon_refused(bomb, "audio_undecodable")

    def test_mp4_boxes_without_end(self, recordings):
        data, box = recordings["m4a"], b"\0\0\0\x08free"
        assert decode(data + box * 1000).duration_s == pytest.approx(SECONDS, abs=0.1)
        assert "over 65,536 boxes" in soon_refused(data + box * (LARGE // 8), "audio_undecodable")
        index = data.index(b"moov") - 4
        size = int.from_bytes(data[index : index + 4], "big") + LARGE // 8 * 8
        within = data[:index] + struct.pack(">I", size) + data[index + 4 :] + box * (LARGE // 8)
        assert "over 16,384 boxes" in soon_refused(within, "audio_undecodable")

    def test_mp4_boxes_within_boxes(self):
        """Deeper than any index goes: not followed, and no recursion to speak of."""
        nested = b"".join(struct.pack(">I4s", 8 * (20_000 - depth), b"trak") for depth in range(20_000))
        moov = struct.pack(">I4s", 8 + len(nested), b"moov") + nested
        with pytest.raises(AudioError):
            decode(b"\0\0\0\x0cftypM4A " + moov)

    @pytest.mark.parametrize("each", [1, 0], ids=["of one size", "with a table"])
    def test_an_mp4_index_of_samples_that_are_not_there(self, recordings, each):
        """FFmpeg would take 24 bytes of memory for each of them."""
        data = bytearray(recordings["m4a"])
        at = data.index(b"stsz") + 8
        data[at : at + 8] = struct.pack(">II", each, 60_000_000)
        assert "claims 60,000,000 pieces" in soon_refused(bytes(data), "audio_truncated")

    def test_a_compressed_mp4_index(self, recordings):
        data = recordings["m4a"]
        index = data.index(b"moov") - 4
        cmov = struct.pack(">I4s4s", 12, b"cmov", bytes(4))
        assert "compressed" in soon_refused(data[:index] + struct.pack(">I4s", 20, b"moov") + cmov, "audio_undecodable")


class TestDamage:
    def test_values_that_are_not_numbers(self):
        for value in (np.nan, np.inf, 3e38):
            sound = glide_at(8_000, 12)
            sound[0, 40_000:40_010] = value
            data = encode("wav_float", np.repeat(sound, 2, axis=0), 8_000)
            assert "not numbers" in refused(data, "audio_undecodable")

    def test_a_hole_of_two_seconds_in_a_window(self, recordings):
        """Ogg pages hold about a second; two lost in the window are a fifth of it."""
        pages = _ogg_pages(recordings["opus"])
        del pages[7:9]
        assert "of the sound between" in refused(b"".join(pages), "audio_undecodable")

    def test_one_bad_frame_is_no_reason_to_refuse(self, recordings):
        for name in ("mp3", "adts", "flac"):
            data = bytearray(recordings[name])
            middle = len(data) // 2
            data[middle : middle + 20] = bytes(20)
            assert np.isfinite(decode(bytes(data)).clips).all()


def test_whatever_is_done_to_a_file_it_decodes_or_is_an_audio_error(recordings):
    """Hundreds of mutated files, every format. A crash of the codec would end the test run."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    outcomes = {"decoded": 0, "refused": 0}
    for _ in range(400):
        name = numbers.choice(list(recordings))
        data = _mutated(recordings[name], numbers)
        started = time.process_time()
        try:
            clips = decode(data).clips
        except AudioError:
            outcomes["refused"] += 1
        else:
            outcomes["decoded"] += 1
            assert clips.dtype == np.float32
            assert np.abs(clips).max() <= 1
        assert time.process_time() - started < 5
    assert min(outcomes.values()) > 40, outcomes


def _mutated(data: bytes, numbers: random.Random) -> bytes:
    """Up to 16 flips, cuts, insertions, repetitions and extreme numbers, most of them in headers."""
    mutant = bytearray(data)
    for _ in range(numbers.choice([1, 1, 2, 4, 16])):
        size = len(mutant)
        if size < 2:
            break
        near_start = numbers.randrange(min(size, numbers.choice([64, 512, 4096, size])))
        at = near_start if numbers.random() < 0.7 else size - 1 - numbers.randrange(min(size, 4096))
        match numbers.randrange(7):
            case 0:
                mutant[at] ^= 1 << numbers.randrange(8)
            case 1:
                mutant[at] = numbers.choice([0, 127, 128, 255])
            case 2:
                del mutant[at : at + numbers.choice([1, 4, 100, 10_000])]
            case 3:
                mutant[at:at] = numbers.randbytes(numbers.choice([1, 4, 100, 5_000]))
            case 4:
                mutant[at : at + 4] = numbers.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1"])
            case 5:
                start = numbers.randrange(size)
                mutant[at:at] = mutant[start : start + numbers.choice([8, 64, 1_000])]
            case _:
                del mutant[numbers.randrange(size) :]
    return bytes(mutant)


def _is_frame_end(data: bytes, place: int) -> bool:
    table = frame_table(io.BytesIO(data), "aac", 1e4)
    return place in set(table.offsets)


def _decoded_samples(action) -> int:
    """How many samples the codec gives while `action` runs."""
    counted = 0
    original = Span.place

    def counting(span, at, frame):
        nonlocal counted
        counted += frame.samples
        original(span, at, frame)

    Span.place = counting
    try:
        action()
    finally:
        Span.place = original
    return counted


def _ogg_pages(data: bytes) -> list[bytes]:
    pages, at = [], 0
    while at < len(data):
        segments = data[at + 26]
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        pages.append(data[at : at + size])
        at += size
    return pages


def _ogg_page(page: bytes, granule: int) -> bytes:
    """The page with another granule position and the checksum for it (RFC 3533)."""
    blank = page[:6] + struct.pack("<q", granule) + page[14:22] + bytes(4) + page[26:]
    crc = 0
    for byte in blank:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc & 0x80000000 else crc << 1
    return blank[:22] + struct.pack("<I", crc) + blank[26:]


def test_the_songs_used_here_are_there():
    assert len(list(Path(SONGS).glob("*.ogg"))) >= 3
