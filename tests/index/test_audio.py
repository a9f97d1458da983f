"""Decoding: the right samples, from every accepted container, at every rate, from bytes, paths and files alike."""

import io
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import FORMATS, SONGS, encode, glide, glide_at, song_samples

from index.sound.audio import AudioError, AudioLimits, decode, decode_span, repeat_pad, window_starts
from index.sound.features import CLIP_SAMPLES, SAMPLE_RATE

# How far from the encoded sound a codec may be: RMS of the difference over RMS of the sound. One sample too
# early or late is 0.09 or more in the windows below (the tone stands at 800 Hz or higher).
LOSSY = 0.05
LOSSLESS = 1e-3
# Samples an encoder puts in front, where the container has no place to say so.
PRIMING = {"adts": 1024, "mp2": 481}


def error(clip: np.ndarray, start_s: float) -> float:
    """How far a clip is from `glide` at `start_s`, at whatever loudness the encoder left it."""
    expected = glide(start_s + np.arange(len(clip)) / SAMPLE_RATE)
    scaled = expected * (clip @ expected) / (expected @ expected)
    return float(np.sqrt(np.mean((clip - scaled) ** 2) / np.mean(scaled**2)))


class TestWindows:
    @given(st.floats(0.01, 20_000))
    def test_the_rule(self, duration_s):
        starts = window_starts(duration_s)
        edge = 20 if duration_s >= 50 else 0
        usable = duration_s - 2 * edge
        assert len(starts) == min(3, max(1, int(usable // 10)))
        assert all(later - former >= 10 - 1e-4 for former, later in pairwise(starts))
        if usable < 10:
            assert starts == (0.0,)
        else:
            assert starts[0] >= edge - 1e-4
            assert starts[-1] + 10 <= duration_s - edge + 1e-4
            centre = (starts[0] + starts[-1] + 10) / 2
            assert centre == pytest.approx(duration_s / 2, abs=1e-4)
            assert all(start * SAMPLE_RATE == pytest.approx(round(start * SAMPLE_RATE)) for start in starts)

    @pytest.mark.parametrize(
        ("duration_s", "starts"),
        [(5, (0,)), (10, (0,)), (15, (2.5,)), (30, (0, 10, 20)), (49, (3.166667, 19.5, 35.833333)), (50, (20,)),
         (70, (20, 30, 40)), (240, (48.333333, 115, 181.666667))],
    )  # fmt: skip
    def test_examples(self, duration_s, starts):
        assert window_starts(duration_s) == pytest.approx(starts, abs=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_windows_hold_the_sound_of_their_place(name):
    """Encode a rising tone; each window must be that tone at the window's time, to the sample."""
    rate = 48_000 if name == "opus" else 44_100
    recording = decode(encode(name, glide_at(rate, 52, channels=2), rate))
    _, codec, lossless = FORMATS[name]
    assert recording.clips.shape == (1, CLIP_SAMPLES)
    assert recording.clips.dtype == np.float32
    assert recording.codec in {codec, codec.removeprefix("lib"), "mp3"}
    assert recording.sample_rate == rate
    delay_s = PRIMING.get(name, 0) / rate
    assert recording.duration_s == pytest.approx(52, abs=0.05 if name in PRIMING else 0.01)
    for clip, start_s in zip(recording.clips, recording.starts_s, strict=True):
        assert error(clip, start_s - delay_s) < (LOSSLESS if lossless else LOSSY)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 47_999, 48_000, 96_000, 192_000])
def test_every_sample_rate_ends_at_48_khz(rate):
    recording = decode(encode("wav", glide_at(rate, 22), rate))
    assert recording.starts_s == (0.5, 11.5)
    for clip, start_s in zip(recording.clips, recording.starts_s, strict=True):
        assert error(clip, start_s) < LOSSLESS


def test_channels_are_averaged():
    levels = np.array([0.5, 0.1, 0.3, 0.0, -0.2, 0.4])[:, None]
    clip = decode(encode("wav_float", levels * glide_at(48_000, 12), 48_000)).clips[0]
    expected = levels.mean() * glide_at(48_000, 12)[0][SAMPLE_RATE : 11 * SAMPLE_RATE]
    assert np.abs(clip - expected).max() < 1e-6


def test_opposite_channels_cancel():
    tone = glide_at(48_000, 12)[0]
    with pytest.raises(AudioError) as caught:
        decode(encode("wav", np.stack([tone, -tone]), 48_000))
    assert caught.value.code == "audio_silent"


def test_samples_beyond_full_scale_are_cut():
    clip = decode(encode("wav_float", 10 * glide_at(44_100, 12), 44_100)).clips[0]
    assert np.abs(clip).max() == 1.0


@pytest.mark.parametrize("name", ["opus", "mp3", "flac", "wav"])
def test_bytes_path_and_file_give_the_same(tmp_path, name):
    samples, rate = song_samples()
    data = encode(name, samples, rate)
    (tmp_path / "named.txt").write_bytes(data)  # found by content, never by name
    of_bytes, of_path, of_file = decode(data), decode(tmp_path / "named.txt"), decode(io.BytesIO(data))
    assert np.array_equal(of_bytes.clips, of_path.clips)
    assert np.array_equal(of_bytes.clips, of_file.clips)
    assert of_bytes.duration_s == of_path.duration_s == pytest.approx(15, abs=0.01)


def test_a_file_object_is_read_from_its_start_and_left_open():
    file = io.BytesIO(encode("wav", glide_at(8_000, 12), 8_000))
    file.seek(1234)
    assert error(decode(file).clips[0], 1) < LOSSLESS
    assert not file.closed


def test_demo_songs():
    for path in sorted(SONGS.glob("*.ogg"))[:5]:
        recording = decode(path)
        assert (recording.container, recording.codec, recording.sample_rate) == ("ogg", "opus", 48_000)
        assert recording.duration_s == pytest.approx(15, abs=0.01)
        assert recording.starts_s == pytest.approx((2.5,), abs=0.01)
        assert 0.001 < np.abs(recording.clips).max() <= 1


def test_the_sound_of_a_film():
    file = io.BytesIO()
    rate = 44_100
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=5, width=32, height=32)
        sound = container.add_stream("aac", rate=rate, layout="mono", bit_rate=160_000)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(glide_at(rate, 50), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = rate, 0
        packets = [*sound.encode(frame), *sound.encode(None)]
        for _ in range(250):
            packets += picture.encode(av.VideoFrame(32, 32, "yuv420p"))
            container.mux([packets.pop(0) for _ in range(min(8, len(packets) - 1))])
        container.mux([*packets, *picture.encode(None)])
    recording = decode(file.getvalue())
    assert (recording.container, recording.codec, len(recording.clips)) == ("mp4", "aac", 1)
    for clip, start_s in zip(recording.clips, recording.starts_s, strict=True):
        assert error(clip, start_s) < LOSSY


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus", "vorbis", "m4a"])
def test_the_first_and_the_last_instant(name):
    """What encoders put in front and behind is cut off, and nothing of the sound is."""
    rate = 48_000 if name == "opus" else 44_100
    span = decode_span(encode(name, glide_at(rate, 12, 2), rate, 192_000), 0.0, 12.0)
    assert len(span) == 12 * SAMPLE_RATE
    assert error(span[:2400], 0.0) < 0.2  # 50 ms; half of it missing would be 0.7
    assert error(span[-2400:], 12 - 0.05) < 0.2


class TestShorterThanAWindow:
    def test_is_repeated_as_often_as_it_fits_then_silent(self):
        recording = decode(encode("wav", glide_at(48_000, 3.5), 48_000))
        clip = recording.clips[0]
        assert recording.starts_s == (0.0,)
        once = clip[:168_000]
        assert error(once, 0) < LOSSLESS
        assert np.array_equal(clip[168_000:336_000], once)
        assert not clip[336_000:].any()

    @given(st.integers(1, CLIP_SAMPLES))
    def test_repeat_pad_is_claps(self, count):
        samples = np.arange(1, count + 1, dtype=np.float32)
        repeats = int(CLIP_SAMPLES / count)
        clap = np.pad(np.tile(samples, repeats), (0, CLIP_SAMPLES - repeats * count))
        assert np.array_equal(repeat_pad(samples), clap)


class TestSpan:
    @pytest.mark.parametrize("name", ["wav", "flac", "opus", "mp3"])
    def test_any_place(self, name):
        rate = 48_000 if name == "opus" else 44_100
        data = encode(name, glide_at(rate, 40), rate)
        for start_s in (0.0, 0.7123, 17.25, 33.3):
            span = decode_span(data, start_s, 5.5)
            assert span.shape == (264_000,)
            assert error(span, round(start_s * SAMPLE_RATE) / SAMPLE_RATE) < LOSSY

    def test_none_is_the_middle(self):
        data = encode("wav", glide_at(44_100, 40), 44_100)
        assert np.array_equal(decode_span(data, None, 30), decode_span(data, 5.0, 30))
        assert len(decode_span(data, None, 60)) == 40 * SAMPLE_RATE

    def test_ends_where_the_recording_ends(self):
        data = encode("wav", glide_at(44_100, 40), 44_100)
        assert len(decode_span(data, 38.0, 10)) == 2 * SAMPLE_RATE
        assert len(decode_span(data, 50.0, 10)) == 0

    def test_windows_are_spans(self):
        data = encode("mp3", glide_at(44_100, 62), 44_100)
        recording = decode(data)
        for clip, start_s in zip(recording.clips, recording.starts_s, strict=True):
            assert np.array_equal(clip, decode_span(data, start_s, 10))


class TestLimits:
    def test_too_short(self):
        with pytest.raises(AudioError, match=r"lasts 0.50 s; at least 1 s") as caught:
            decode(encode("wav", glide_at(8_000, 0.5), 8_000))
        assert caught.value.code == "audio_too_short"
        assert decode(encode("wav", glide_at(8_000, 0.5), 8_000), AudioLimits(min_s=0.5)).duration_s == 0.5

    def test_too_long(self):
        with pytest.raises(AudioError, match="lasts over 20 s") as caught:
            decode(encode("mp3", glide_at(44_100, 30), 44_100), AudioLimits(max_s=20))
        assert caught.value.code == "audio_too_long"

    @pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
    def test_silent(self, name):
        quiet = np.random.default_rng(0).standard_normal((1, 48_000 * 12)) * 1e-4
        with pytest.raises(AudioError, match="silent") as caught:
            decode(encode(name, quiet, 48_000))
        assert caught.value.code == "audio_silent"

    def test_one_window_with_sound_is_enough(self):
        sound = glide_at(8_000, 30)
        sound[:, : 8_000 * 15] = 0
        assert len(decode(encode("wav", sound, 8_000)).clips) == 3
