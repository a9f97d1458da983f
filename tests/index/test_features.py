"""The log-mel front end, held against transformers' and against its equation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import SONGS, song_samples
from transformers import ClapFeatureExtractor

from index.sound.features import CLIP_SAMPLES, FRAMES, HOP, MAX_DB, MELS, dequantise, log_mel, quantise

TIMES = np.arange(CLIP_SAMPLES) / 48_000


def noise(seed: int, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(CLIP_SAMPLES) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """The front end of laion/clap-htsat-unfused, by its preprocessor_config.json."""
    return ClapFeatureExtractor(
        truncation="rand_trunc", padding="repeatpad", feature_size=64, sampling_rate=48_000,
        fft_window_size=1024, hop_length=480, frequency_min=50, frequency_max=14_000,
    )  # fmt: skip


@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(noise(0), id="noise"),
        pytest.param(noise(1, 1e-6), id="noise under the floor"),
        pytest.param(np.sin(2 * np.pi * 440 * TIMES).astype(np.float32), id="sine: bins 100 dB apart in a frame"),
        pytest.param(np.sign(np.sin(2 * np.pi * 61 * TIMES)).astype(np.float32), id="full-scale square"),
        pytest.param(np.zeros(CLIP_SAMPLES, np.float32), id="silence"),
        pytest.param(np.eye(1, CLIP_SAMPLES, 2400, dtype=np.float32)[0], id="click"),
    ],
)
def test_equals_claps_front_end(reference, clip):
    expected = reference(clip, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]
    actual = log_mel(clip[None])
    assert actual.dtype == np.float32
    assert actual.shape == (1, FRAMES, MELS) == (1, 1001, 64)
    assert np.abs(actual[0] - expected).max() <= 1e-3


@pytest.mark.parametrize("song", range(3))
def test_equals_claps_front_end_on_songs(reference, song):
    samples, _ = song_samples(song)
    clip = samples[0, :CLIP_SAMPLES]
    expected = reference(clip, sampling_rate=48_000, return_tensors="np")["input_features"][0, 0]
    assert np.abs(log_mel(clip[None])[0] - expected).max() <= 1e-3
    assert len(list(SONGS.glob("*.ogg"))) >= 3


@given(samples=st.integers(513, 6000), seed=st.integers(0, 2**32 - 1))
def test_every_length_frame_by_frame(reference, samples, seed):
    """Frame f is the windowed FFT of the 1024 samples around f * 480, reflected at the ends."""
    clip = np.random.default_rng(seed).standard_normal(samples)
    frames = log_mel(clip[None].astype(np.float32))[0]
    assert frames.shape == (1 + samples // HOP, MELS)
    padded = np.pad(clip.astype(np.float32).astype(np.float64), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    for number in {0, len(frames) // 2, len(frames) - 1}:
        power = np.abs(np.fft.rfft(padded[number * HOP : number * HOP + 1024] * window)) ** 2
        mel = 10 * np.log10(np.maximum(reference.mel_filters_slaney.T @ power, 1e-10))
        assert np.abs(frames[number] - mel).max() < 1e-4


def test_a_batch_equals_its_clips():
    clips = np.stack([noise(seed) for seed in range(3)])
    assert np.array_equal(log_mel(clips), np.concatenate([log_mel(clip[None]) for clip in clips]))
    assert log_mel(np.empty((0, CLIP_SAMPLES), np.float32)).shape == (0, FRAMES, MELS)


@pytest.mark.parametrize("shape", [(480_000,), (1, 512), (1, 1, 480_000)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="clips must be"):
        log_mel(np.zeros(shape, np.float32))


@given(seed=st.integers(0, 2**32 - 1))
def test_eight_bits_keep_a_quarter_of_a_decibel(seed):
    mel = np.random.default_rng(seed).uniform(-100, MAX_DB, (2, 5, MELS)).astype(np.float32)
    steps = quantise(mel)
    assert steps.dtype == np.uint8
    assert np.abs(dequantise(steps) - mel).max() < 0.2668
    assert np.array_equal(quantise(dequantise(steps)), steps)


def test_no_sound_leaves_the_range_of_the_eight_bits():
    """The loudest per filter: a full-scale square wave on each filter's centre, over low and high bins."""
    loudest = max(
        log_mel(np.sign(np.sin(2 * np.pi * hertz * TIMES[None, :9600])).astype(np.float32)).max()
        for hertz in np.geomspace(50, 14_000, 60)
    )
    assert 30 < loudest <= MAX_DB
    assert log_mel(np.zeros((1, 9600), np.float32)).min() >= -100.001
    assert quantise(np.array([[[-500.0, 500.0]]], np.float32)).tolist() == [[[0, 255]]]
