"""Short recordings, made on the spot and encoded with PyAV, and how tests send them."""

import io

import av
import numpy as np

RATE = 48_000


def tone(seconds: float, hertz: float = 330.0, seed: int = 0) -> np.ndarray:
    """f32 [n] at 48 kHz: a tone with some noise, so that no two seeds sound alike."""
    t = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.05, len(t))
    return (0.3 * np.sin(2 * np.pi * hertz * t) * (1 + np.sin(2 * np.pi * 3 * t)) / 2 + noise).astype(np.float32)


def encode(samples: np.ndarray, container: str, codec: str) -> bytes:
    """Encode f32 [n] at 48 kHz as a file in memory."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.frame_size or None)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def wav(samples: np.ndarray) -> bytes:
    return encode(samples, "wav", "pcm_s16le")


def ogg(samples: np.ndarray) -> bytes:
    return encode(samples, "ogg", "libopus")


def mp3(samples: np.ndarray) -> bytes:
    return encode(samples, "mp3", "libmp3lame")


def upload(client, audio: bytes, /, kind: str = "audio/ogg", **query: object):
    """POST a raw body to /ingest-track."""
    return client.post("/ingest-track", content=audio, headers={"content-type": kind}, params=query)


def seeded(client, *seeds: str, k: int = 10, **more: object) -> list[str]:
    """Return the ids with which the service continues a playlist of `seeds`."""
    answer = client.post("/continue-playlist", json={"seeds": list(seeds), "k": k, **more})
    assert answer.status_code == 200, answer.text
    return [track["track_id"] for track in answer.json()["tracks"]]
