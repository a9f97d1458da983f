"""The service as a real process: from upload to recommendable, raw against multipart, and continuing a playlist.

The towers are of full size (HTS-AT as in laion/clap-htsat-unfused, a six-layer BERT) with random weights: what is timed
does not depend on them.
"""

import io
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import av
import numpy as np

from benchmarks.timing import milliseconds
from demo.process import Service

CATALOGUE, ROUNDS, SEEDS, RESULTS = 20_000, 25, 20, 100
STAGES = ("receive", "decode", "features", "encode", "ledger", "index")
BOUNDARY = "debut-benchmark-boundary"
Row = tuple[str, str]


def run() -> list[Row]:
    """Build the release in a process of its own, serve it, and measure from outside."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.release", str(root / "releases"), str(CATALOGUE), "full"],
            check=True,
            timeout=600,
        )
        began = time.perf_counter()
        with Service(root / "releases", root / "ledger.sqlite", _free_port()) as service:
            rows = [
                (f"start until ready ({CATALOGUE:,} tracks)", f"{time.perf_counter() - began:.2f} s"),
                *_uploads(service.url),
                *_parallel(service.url),
                *_continuations(service.url),
            ]
        began = time.perf_counter()
        with Service(root / "releases", root / "ledger.sqlite", _free_port()) as service:
            known = int(_asked(service.url, "GET", "/")[1]["tracks"]) - CATALOGUE
            restart = time.perf_counter() - began
        return [*rows, (f"restart until ready ({known} tracks replayed)", f"{restart:.2f} s")]


def _uploads(url: str) -> list[Row]:
    """Sequential uploads, the forms taking turns."""
    files = {
        "15 s Ogg Opus": (_encode(15, "ogg", "libopus", 48_000), "audio/ogg"),
        "180 s MP3": (_encode(180, "mp3", "libmp3lame", 320_000), "audio/mpeg"),
        "60 s WAV": (_encode(60, "wav", "pcm_s16le", None), "audio/wav"),
    }
    forms: dict[str, Callable[[str, str, bytes, str], dict[str, Any]]] = {"raw": _send_raw, "multipart": _send_form}
    rows: list[Row] = []
    for name, (audio, kind) in files.items():
        answers: dict[str, list[dict[str, Any]]] = {form: [] for form in forms}
        for turn in range(ROUNDS + 2):
            for form, send in forms.items():
                answers[form].append(send(url, f"{name} {form} {turn}", audio, kind))
        size = f"{name} ({len(audio) / 2**20:.2f} MiB)"
        total = {form: _median(a["client_s"] for a in answers[form][2:]) for form in forms}
        received = {form: _median(a["timings_ms"]["receive"] / 1e3 for a in answers[form][2:]) for form in forms}
        stages = {s: _median(a["timings_ms"][s] for a in answers["raw"][2:]) for s in STAGES}
        rows += [
            (f"{size}, raw: request to answer", milliseconds(total["raw"])),
            (f"{name}, stages in ms", ", ".join(f"{stage} {ms:.2f}" for stage, ms in stages.items())),
            (f"{name}, multipart: request to answer", milliseconds(total["multipart"])),
            (f"{name}, receiving, multipart / raw", f"{received['multipart'] / received['raw']:.1f}"),
        ]
    return rows


def _parallel(url: str) -> list[Row]:
    """Four clients at once: how many tracks a second are acknowledged."""
    audio, count = _encode(15, "ogg", "libopus", 48_000), 60
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _send_raw(url, f"parallel {n}", audio, "audio/ogg"), range(count)))
    return [("15 s Ogg Opus, four clients", f"{count / (time.perf_counter() - began):.1f} tracks/s")]


def _continuations(url: str) -> list[Row]:
    rng = np.random.default_rng(0)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "explained": {"explain": True},
        "diversity 0.3, two an artist": {"diversity": 0.3, "max_per_artist": 2},
        "one genre in twenty": {"filters": {"genres": ["genre 3"]}},
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    for turn in range(203):
        seeds = [f"t{row}" for row in rng.integers(0, CATALOGUE, SEEDS)]
        for kind, more in kinds.items():
            body = json.dumps({"seeds": seeds, "k": RESULTS, **more})
            began = time.perf_counter()
            connection.request("POST", "/continue-playlist", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = answer.read()
            if turn >= 3:
                seconds[kind].append(time.perf_counter() - began)
            assert answer.status == 200, found
    connection.close()
    asked = f"continue-playlist, {SEEDS} seeds, {RESULTS} of {CATALOGUE:,}"
    return [
        (f"{asked}, {kind}", f"{milliseconds(statistics.median(s))} (p95 {milliseconds(_p95(s))})")
        for kind, s in seconds.items()
    ]


def _send_raw(url: str, track_id: str, audio: bytes, kind: str) -> dict[str, Any]:
    query = urlencode({"track_id": track_id, "title": "A song", "artist": "Somebody"})
    return _ingested(url, f"/ingest-track?{query}", audio, kind)


def _send_form(url: str, track_id: str, audio: bytes, kind: str) -> dict[str, Any]:
    metadata = json.dumps({"track_id": track_id, "title": "A song", "artist": "Somebody"})
    parts = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata"\r\n'
        f"Content-Type: application/json\r\n\r\n{metadata}\r\n--{BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="audio"; filename="song"\r\nContent-Type: {kind}\r\n\r\n'
    )
    body = parts.encode() + audio + f"\r\n--{BOUNDARY}--\r\n".encode()
    return _ingested(url, "/ingest-track", body, f"multipart/form-data; boundary={BOUNDARY}")


def _ingested(url: str, path: str, body: bytes, kind: str) -> dict[str, Any]:
    began = time.perf_counter()
    status, answer = _asked(url, "POST", path, body, kind)
    assert status == 201, answer
    return answer | {"client_s": time.perf_counter() - began}


def _asked(url: str, method: str, path: str, body: bytes = b"", kind: str = "") -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _median(values: Any) -> float:
    return statistics.median(values)


def _p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _encode(seconds: int, container: str, codec: str, bit_rate: int | None) -> bytes:
    """A chord with noise, 48 kHz mono (WAV: 11 MiB would be stereo; mono is half)."""
    t = np.arange(seconds * 48_000) / 48_000
    chord = sum(np.sin(2 * np.pi * hertz * t) for hertz in (220, 277.2, 329.6)) / 6
    samples = chord + np.random.default_rng(0).normal(0, 0.05, len(t))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000)
        stream.layout = "mono"
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(stream.format, "mono", 48_000, frame_size=stream.frame_size or None)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return buffer.getvalue()
