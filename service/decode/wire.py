"""What the service and a decoding process say to each other: a length, JSON, then arrays as they are. No pickle."""

import json
import math
import os
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from index.sound.audio import MAX_CLIPS, AudioLimits
from index.sound.features import FRAMES, MELS

_LENGTH = struct.Struct(">I")
_MAX_HEAD = 1 << 16  # bytes of JSON
_MAX_TEXT = 2000  # characters of a sentence


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What a recording turned out to be: `log_mel` f32 [windows, 1001, 64] in dB, and facts about the file."""

    log_mel: NDArray[np.float32]
    duration_s: float
    container: str
    codec: str
    sample_rate: int
    peak: float
    """The largest magnitude of a sample in any channel; 1 is full scale."""
    clipped: float
    """The part of the samples, 0 to 1, that were cut off at full scale."""
    features_s: float
    """Seconds that the log-mel took, of those that it all took."""


_FACTS = ("duration_s", "container", "codec", "sample_rate", "peak", "clipped", "features_s")


class NonsenseError(Exception):
    """A decoding process answered what none of ours answers: it is not to be trusted any more."""


def send_request(line: socket.socket, file: int, limits: AudioLimits) -> None:
    """Hand over an open file (its descriptor) to be decoded within `limits`. Raises OSError when nobody listens."""
    head = json.dumps(asdict(limits)).encode()
    socket.send_fds(line, [_LENGTH.pack(len(head)) + head], [file])


def receive_request(line: socket.socket) -> tuple[BinaryIO, AudioLimits]:
    """Wait for the next file and its limits. Raises EOFError when the service is gone."""
    start, files, _, _ = socket.recv_fds(line, _LENGTH.size, 1)
    if len(start) < _LENGTH.size or not files:
        raise EOFError
    limits = AudioLimits(**json.loads(_read(line, _LENGTH.unpack(start)[0], None)))
    return os.fdopen(files[0], "rb"), limits


def send_heard(line: socket.socket, heard: Heard) -> None:
    """Answer with a decoded recording."""
    head = {name: getattr(heard, name) for name in _FACTS}
    say(line, {"outcome": "heard", "windows": len(heard.log_mel), **head})
    line.sendall(heard.log_mel.astype("<f4").tobytes())


def say(line: socket.socket, head: Mapping[str, Any]) -> None:
    """Send one JSON object."""
    text = json.dumps(head).encode()
    line.sendall(_LENGTH.pack(len(text)) + text)


def listen(line: socket.socket, deadline: float) -> dict[str, Any]:
    """Receive one JSON object, all of it before `deadline` (time.monotonic()).

    Raises TimeoutError, EOFError, OSError, NonsenseError.
    """
    (length,) = _LENGTH.unpack(_read(line, _LENGTH.size, deadline))
    if length > _MAX_HEAD:
        raise NonsenseError(f"a head of {length} bytes")
    try:
        head = json.loads(_read(line, length, deadline))
    except ValueError as error:
        raise NonsenseError(f"no JSON: {error}") from None
    if not isinstance(head, dict):
        raise NonsenseError("a head that is no object")
    return head


def receive_heard(line: socket.socket, head: Mapping[str, Any], deadline: float) -> Heard:
    """Receive the arrays behind `head`; nothing of either is believed. Raises as `listen` does."""
    windows, duration_s = head.get("windows"), head.get("duration_s")
    if not isinstance(windows, int) or not 1 <= windows <= MAX_CLIPS:
        raise NonsenseError("a number of windows that cannot be")
    if not isinstance(duration_s, float) or not math.isfinite(duration_s) or duration_s <= 0:
        raise NonsenseError("a duration that cannot be")
    sample_rate, features_s = head.get("sample_rate"), head.get("features_s")
    if not isinstance(sample_rate, int) or not isinstance(features_s, float):
        raise NonsenseError("no rate or no time")
    peak, clipped = head.get("peak"), head.get("clipped")
    if not isinstance(peak, float) or not math.isfinite(peak) or peak < 0:
        raise NonsenseError("a peak that cannot be")
    if not isinstance(clipped, float) or not 0 <= clipped <= 1:
        raise NonsenseError("a clipped part that cannot be")
    container, codec = text(head, "container"), text(head, "codec")
    data = _read(line, windows * FRAMES * MELS * 4, deadline)
    log_mel = np.frombuffer(data, "<f4").reshape(windows, FRAMES, MELS).astype(np.float32, copy=False)
    if not np.isfinite(log_mel).all():
        raise NonsenseError("features that are not numbers")
    return Heard(log_mel, duration_s, container, codec, sample_rate, peak, clipped, features_s)


def text(head: Mapping[str, Any], name: str) -> str:
    """Return a text of `head`, cut to a sane length. Raises NonsenseError when there is none."""
    value = head.get(name)
    if not isinstance(value, str):
        raise NonsenseError(f"no {name}")
    return value[:_MAX_TEXT].encode("utf-8", "replace").decode()


def _read(line: socket.socket, count: int, deadline: float | None) -> bytearray:
    data, got = bytearray(count), 0
    view = memoryview(data)
    while got < count:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            line.settimeout(left)
        received = line.recv_into(view[got:])
        if received == 0:
            raise EOFError
        got += received
    return data
