"""Assembling decoded frames to a span: whatever rates and time stamps a stream comes up with."""

import io
import itertools
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from recordings import encode, glide, glide_at

from index.sound import audio, streams
from index.sound.containers import AudioError
from index.sound.streams import read_span

RATE = 8_000


class Declared:
    """A stream that only says what it is."""

    codec, rate, base, duration_s = "aac", RATE, Fraction(1, RATE), 1.0


def frame(at: int | None, samples: int, rate: int = RATE, base: int = RATE) -> av.AudioFrame:
    """A frame that holds its own sample numbers, scaled down, and starts at `at` (in units of 1/base s)."""
    start = 0 if at is None else round(at * rate / base)
    values = np.arange(start, start + samples, dtype=np.float32)[None] / 1e5
    made = av.AudioFrame.from_ndarray(values, "fltp", "mono")
    made.sample_rate, made.pts = rate, at
    return made


@pytest.fixture
def giving(monkeypatch):
    """Let every stream give these frames."""

    def give(*frames):
        monkeypatch.setattr(streams, "_frames", lambda *_: iter(frames))

    return give


def values(span) -> np.ndarray:
    return np.rint(span.samples * 1e5)


def test_frames_are_put_where_they_belong(giving):
    giving(frame(0, 100), frame(100, 100), frame(200, 100))
    span = read_span(Declared(), 50, 200)
    assert span.known.all()
    assert np.array_equal(values(span), np.arange(50, 250))


def test_a_gap_stays_silent_and_unknown(giving):
    giving(frame(0, 100), frame(300, 100))
    span = read_span(Declared(), 0, 400)
    assert np.array_equal(span.known, np.r_[np.ones(100, bool), np.zeros(200, bool), np.ones(100, bool)])
    assert not span.samples[100:300].any()
    assert np.array_equal(values(span)[300:], np.arange(300, 400))


def test_a_frame_without_a_time_stamp_follows_the_last(giving):
    giving(frame(None, 100), frame(100, 100), frame(None, 100))
    span = read_span(Declared(), 100, 200)
    assert span.known.all()  # the first had no place to go
    assert np.array_equal(values(span), np.r_[np.arange(100, 200), np.arange(100)])


def test_coarse_time_stamps_leave_no_gaps(giving):
    """A time base of 1 ms puts frames of 100 samples (12.5 ms) up to half a ms from their place."""
    coarse = Declared()
    coarse.base = Fraction(1, 1000)
    giving(*(frame(round(number * 12.5), 100, base=1000) for number in range(10)))
    assert read_span(coarse, 0, 1000).known.all()


def test_aac_with_sbr_decodes_to_twice_its_declared_rate(giving):
    giving(frame(-100, 100), frame(0, 200, 2 * RATE), frame(100, 200, 2 * RATE))
    span = read_span(Declared(), 0, 200)
    assert span.scale == 2
    assert span.known.all()
    assert np.array_equal(values(span), np.arange(400))


@pytest.mark.parametrize("rate", [RATE * 2, RATE * 3, RATE // 2])
def test_a_rate_that_changes_within_the_span(giving, rate):
    giving(frame(0, 100), frame(100, 100, rate))
    with pytest.raises(AudioError, match=f"changes to {rate} Hz"):
        read_span(Declared(), 0, 200)


def test_time_stamps_that_stand_still_end_after_20_s(giving):
    given = 0

    def endless():
        nonlocal given
        while True:
            given += 1
            yield frame(0, RATE)

    giving()
    streams._frames = lambda *_: endless()  # restored by `giving`'s monkeypatch
    span = read_span(Declared(), 5 * RATE, 10 * RATE)
    assert not span.known.any()
    assert given == 31


class Packets(Declared):
    """A stream of packets that decode to nothing, or not at all."""

    def __init__(self, times: Iterator[int], fails: bool) -> None:
        self.read, self.times, self.fails = 0, times, fails

    def decoder(self):
        return self

    def decode(self, packet):
        if self.fails:
            raise av.InvalidDataError(1, "bad")
        return []

    def packets(self, start_s):
        for time in self.times:
            packet = av.Packet(b"x")
            packet.pts = time
            self.read += 1
            yield packet


@pytest.mark.parametrize("fails", [True, False])
def test_packets_behind_the_span_are_not_read(fails):
    stream = Packets(itertools.count(0, 100), fails)
    assert not read_span(stream, 800, 800).known.any()
    assert stream.read == pytest.approx((1600 + RATE) / 100, abs=2)


def test_a_file_of_countless_packets_is_given_up(monkeypatch):
    monkeypatch.setattr(streams, "_PACKETS", 100)
    data = encode("flac", glide_at(8_000, 100), 8_000)
    with pytest.raises(AudioError, match="too many packets"):
        streams.count_seconds(streams.DemuxedStream(io.BytesIO(data), "flac"), 1e5)
    monkeypatch.setattr(streams, "_PACKETS", 10_000)
    assert streams.count_seconds(streams.DemuxedStream(io.BytesIO(data), "flac"), 1e5) == 100
    assert 10 < streams.count_seconds(streams.DemuxedStream(io.BytesIO(data), "flac"), 10) < 12


def test_double_rate_reaches_the_windows_in_place(monkeypatch):
    """A stream that declares half its rate, as AAC with SBR may, gives the same windows."""
    data = encode("wav", glide_at(44_100, 62), 44_100)
    honest = audio.decode(data)
    choose = streams.DemuxedStream._choose

    def halved(self, container):
        choose(self, container)
        self.rate //= 2

    monkeypatch.setattr(streams.DemuxedStream, "_choose", halved)
    halving = audio.decode(data)
    assert halving.sample_rate == 22_050
    assert halving.starts_s == honest.starts_s
    assert np.abs(halving.clips - honest.clips).max() < 1e-6
    start = halving.starts_s[0] + np.arange(480_000) / 48_000
    assert np.abs(halving.clips[0] - glide(start)).max() < 1e-3
