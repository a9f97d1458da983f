"""What an upload turned out to be, for its answer."""

import dataclasses
import math
from typing import Any

from index.sound.audio import CLIP_S
from service.decode.wire import Heard
from service.ingest.duplicates import Near

SILENT_DB = -60.0
"""A frame of the log-mel (10 ms) with no band above this is silent: noise of -69 dBFS has this much."""

_FRAMES_A_SECOND = 100
_LOWEST = 1e-5  # -100 dBFS, below which there is no peak to speak of


def silence(heard: Heard) -> float:
    """Return the part of the windows, 0 to 1, in which there is nothing to hear.

    A recording shorter than a window was repeated to fill it, and zeros to its end: only the recording counts.
    """
    frames = heard.log_mel.shape[1]
    if heard.duration_s < CLIP_S:
        frames = max(1, min(frames, int(heard.duration_s * _FRAMES_A_SECOND)))
    loudest = heard.log_mel[:, :frames].max(axis=2)
    return round(float((loudest < SILENT_DB).mean()), 4)


def quality(heard: Heard, near: Near | None) -> dict[str, Any]:
    """Return schemas.Quality as plain data."""
    return {
        "duration_s": heard.duration_s,
        "windows": len(heard.log_mel),
        "container": heard.container,
        "codec": heard.codec,
        "sample_rate": heard.sample_rate,
        "silence": silence(heard),
        "peak_dbfs": round(20 * math.log10(max(heard.peak, _LOWEST)), 2),
        "clipped": round(heard.clipped, 6),
        "near_duplicate": near and dataclasses.asdict(near),
    }
