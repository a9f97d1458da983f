"""Files made to break a decoder, sent to a real service: each is answered, and nothing of them stays."""

import random
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import httpx
import numpy as np
import pytest
from service_bombs import bombs
from service_process import RunningService
from service_uploads import RATE, encode, ogg, tone, upload
from test_service_decoding import children, gone, peak_bytes

MEMORY_MB = 96
GROWTH = 300e6  # bytes that the service's peak may grow by
FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "float wav": ("wav", "pcm_f32le"),
    "aiff": ("aiff", "pcm_s16be"),
    "flac": ("flac", "flac"),
    "alac": ("ipod", "alac"),
    "m4a": ("ipod", "aac"),
    "adts": ("adts", "aac"),
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
}


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    sound = tone(2.5)
    return {name: encode(sound, muxer, codec) for name, (muxer, codec) in FORMATS.items()}


def float_wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    """A WAV of f32 [n, channels], whatever they are."""
    data = samples.astype("<f4").tobytes()
    channels = samples.shape[1]
    head = struct.pack("<HHIIHH", 3, channels, rate, rate * 4 * channels, 4 * channels, 32)
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack(
        "<I", len(data)
    ) + data  # fmt: skip


def oddities(recordings: dict[str, bytes]) -> dict[str, bytes]:
    """Well-formed files at the edges of what there is."""
    sound = tone(2.5)[:, None]
    broken = sound.copy()
    broken[5000:5010] = np.nan
    huge = struct.pack("<I", 0xFFFFFFF0)
    wav = recordings["wav"]
    at = wav.index(b"data") + 4
    return {
        "not numbers": float_wav(broken),
        "infinite": float_wav(np.full((60_000, 1), np.inf)),
        "beyond float": float_wav(sound * np.float32(3e38)),
        "one sample": float_wav(sound[:1]),
        "no sample": float_wav(sound[:0]),
        "384 kHz": float_wav(np.tile(sound, (4, 1)), 384_000),
        "768 kHz": float_wav(np.tile(sound, (8, 1)), 768_000),
        "1 Hz": float_wav(sound[:2000], 1),
        "32 channels": float_wav(np.repeat(sound, 32, axis=1)),
        "65 channels": float_wav(np.repeat(sound[:40_000], 65, axis=1)),
        "claims more": wav[:at] + huge + wav[at + 4 :],
        "claims nothing": wav[:at] + bytes(4) + wav[at + 4 :],
        "an empty body": b"",
        "nothing but ff": b"\xff" * 300_000,
        "nothing but zeros": bytes(300_000),
    }


def mutated(data: bytes, numbers: random.Random) -> bytes:
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


class Watch:
    """The highest memory that any decoding process of a service was seen with, looked at every 20 ms."""

    def __init__(self, service: int) -> None:
        self.peaks: dict[int, int] = {}
        self._service, self._ended = service, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            for pid in self.peaks.keys() | children(self._service):
                try:
                    self.peaks[pid] = peak_bytes(pid)
                except (FileNotFoundError, ProcessLookupError, StopIteration):
                    continue


@pytest.mark.parametrize(
    ("count", "bomb_size"), [(200, 2_000_000), pytest.param(2000, 60_000_000, marks=pytest.mark.long)]
)
def test_no_file_breaks_the_service(releases, tmp_path, recordings, count, bomb_size):
    """Mutants of every format, oddities and bombs: 0 answers of 5xx, 0 processes left, memory within its bounds."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    names = cycle(recordings)
    files = list(oddities(recordings).items())
    whole = (recordings[name] for name in ("mp3", "wav", "aiff", "m4a", "flac"))
    files += bombs(*whole, bomb_size).items()
    files += [(name, mutated(recordings[name], numbers)) for name, _ in zip(names, range(count), strict=False)]
    settings = {"decode_memory_mb": MEMORY_MB, "decode_seconds": 5, "log_level": "warning"}
    with RunningService(releases, tmp_path / "ledger.sqlite", **settings) as running:
        assert upload(running.client, ogg(tone(2)), track_id="first").status_code == 201
        before = peak_bytes(running.process.pid)
        codes: Counter[str] = Counter()
        with Watch(running.process.pid) as watch, ThreadPoolExecutor(2) as pool:
            codes.update(pool.map(lambda file: outcome(running.client, *file), files))
            grown = peak_bytes(running.process.pid) - before
        print(f"{len(files)} files, {dict(codes)}, service grew by {grown / 1e6:.0f} MB, worker at most "
              f"{max(watch.peaks.values()) / 1e6:.0f} MB, {len(watch.peaks)} workers")  # fmt: skip
        assert upload(running.client, ogg(tone(2, 220)), track_id="last").status_code == 201
        assert grown < GROWTH
        assert max(watch.peaks.values()) < 75e6 + (MEMORY_MB << 20)
        left = set(children(running.process.pid))
        assert len(left) == 2
        assert all(gone(pid) for pid in watch.peaks.keys() - left)
        assert running.stop() == 0
    assert all(gone(pid) for pid in left)
    assert min(codes["created"], codes["audio_truncated"], codes["audio_undecodable"]) > count / 50, codes


def outcome(client: httpx.Client, name: str, audio: bytes) -> str:
    """Send a file; return "created" or the code of its refusal."""
    started = time.monotonic()
    answer = upload(client, audio, kind="application/octet-stream", replace="true")
    assert answer.status_code in (200, 201, 413, 415, 422), (name, answer.status_code, answer.text)
    assert time.monotonic() - started < 25, name
    if answer.status_code < 300:
        return "created"
    return answer.json()["code"]
