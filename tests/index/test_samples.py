"""What decoded samples were before they became mono: their peak, and where they were cut off. Held on real files."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import FORMATS, encode

from index.sound.audio import Recording, decode
from index.sound.samples import LevelMeter, Span

RATE = 48_000
LOSSLESS = ["wav", "wav24", "wav_float", "wav_u8", "aiff", "flac", "alac"]
LOSSY = ["mp3", "opus", "m4a", "adts", "vorbis"]


def sine(amplitude: float = 1.0, hertz: float = 440.0, seconds: float = 3, rate: int = RATE) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate + 0.1)


def heard(name: str, *channels: np.ndarray, rate: int = RATE) -> Recording:
    return decode(encode(name, np.stack(channels), rate))


def decibels(recording: Recording) -> float:
    return float(20 * np.log10(recording.peak))


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_clean_sine_of_full_scale_is_not_clipped(name):
    """But for 8 bits, in which the tops of waves are flat: there it is 0.2 dB lower."""
    recording = heard(name, sine(0.98 if name == "wav_u8" else 1.0))
    assert recording.clipped == 0
    assert decibels(recording) == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("name", LOSSLESS)
def test_one_that_was_cut_off_is(name):
    """Of a sine of twice full scale, 2/3 lies outside: all but asin(1/2) of each quarter turn."""
    recording = heard(name, np.clip(sine(2.0), -1, 1))
    assert recording.clipped == pytest.approx(2 / 3, abs=0.01)
    assert decibels(recording) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_formats_go_beyond_full_scale_where_the_sound_was_cut_off(name):
    """How much of it does depends on the encoder: they round the corners."""
    channels = 2 if name == "vorbis" else 1
    fade = np.minimum(1, np.arange(3 * RATE) / RATE)
    loud = heard(name, *[np.clip(2 * fade * sine(), -1, 1)] * channels)
    clean = heard(name, *[0.7 * fade * sine()] * channels)
    assert loud.clipped > 0.003
    assert 0 < decibels(loud) < 6
    assert clean.clipped == 0
    assert -4 < decibels(clean) < 0  # FFmpeg's AAC encoder is 3 dB off with a lone tone


def test_floats_may_exceed_full_scale():
    recording = heard("wav_float", sine(4.0))
    assert decibels(recording) == pytest.approx(12.04, abs=0.01)
    assert recording.clipped > 0.8
    assert np.abs(recording.clips).max() <= 1


@pytest.mark.parametrize("name", ["wav", "flac", "alac"])  # one is interleaved, one planar
def test_a_channel_that_is_cut_off_counts_though_the_mean_is_not(name):
    recording = heard(name, np.clip(sine(2.0), -1, 1), 0.1 * sine())
    assert recording.clipped == pytest.approx(2 / 3, abs=0.01)
    assert decibels(recording) == pytest.approx(0, abs=0.01)
    assert np.abs(recording.clips).max() < 0.6


def test_near_silence_has_a_peak_and_is_not_clipped():
    recording = heard("wav_float", sine(0.002))
    assert decibels(recording) == pytest.approx(-54, abs=0.1)
    assert recording.clipped == 0


def test_above_48_khz_a_place_lasts_as_long():
    """A clean 200 Hz at 192 kHz stays within 16 bits' last step for five samples, and is not clipped."""
    assert heard("wav", sine(1.0, 200, rate=192_000), rate=192_000).clipped == 0
    assert heard("wav", np.clip(sine(2.0, 200, rate=192_000), -1, 1), rate=192_000).clipped > 0.6


def test_a_repeated_short_recording_counts_once():
    sound = sine(0.5, seconds=1.5)
    sound[1000:1012] = 1
    assert heard("wav", sound).clipped == pytest.approx(12 / len(sound))


def test_only_the_windows_count():
    sound = sine(0.5, seconds=60)
    sound[: 15 * RATE] = 1
    recording = heard("flac", sound)
    assert recording.starts_s[0] == 20
    assert recording.clipped == 0
    assert recording.peak == pytest.approx(0.5, abs=0.01)


@given(full=st.lists(st.booleans(), max_size=60), rate=st.sampled_from([8_000, 48_000, 96_000, 192_000]))
def test_rows_are_counted_as_by_hand(full, rate):
    span = Span.silent(len(full), 1)
    span.full[:], span.known[:] = full, True
    meter = LevelMeter()
    meter.add(span, rate)
    rows = [len(list(row)) for at_full, row in itertools.groupby(full) if at_full]
    expected = sum(row for row in rows if row >= max(3, rate // 16_000))
    assert meter.clipped * max(1, len(full)) == pytest.approx(expected)


def test_every_format_has_a_peak_near_what_was_encoded():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    level = random.Random(seed).uniform(0.05, 0.6)
    sound = np.minimum(1, np.arange(3 * RATE) / RATE) * sine(level)
    for name in FORMATS:
        assert decibels(heard(name, sound, sound)) == pytest.approx(20 * np.log10(level), abs=1.0), name
