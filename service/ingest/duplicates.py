"""Which track sounds most like a new one: the cosine of audio vectors, looked for among all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.collection import CollectionView

_ROWS_AT_ONCE = 1 << 16
"""Rows compared at once: 64 MiB of vectors, of which only the products are kept."""


@dataclass(frozen=True, slots=True)
class Near:
    """A live track and the cosine of its audio vector with the one asked about."""

    track_id: str
    similarity: float


def nearest_sound(view: CollectionView, audio: NDArray[np.float32], but: str, at_least: float) -> Near | None:
    """Return the live track, `but` one id, whose audio vector is nearest to the unit vector `audio` f32 [256].

    None when no cosine reaches `at_least`. Of several that are alike, the one that was here first. Every vector is
    looked at: what sounds the same may have any title, so the other spaces' indexes would miss it. That takes
    0.7 ms for 20,000 tracks and 0.1 s for a million (one thread).

    It is a hint, as good as the encoder. By the demo's, of 240 songs none reaches 0.97 with another; of 40 of them all
    do as WAV or Opus of 96 kbit/s, half of those that begin 0.1 s later, a quarter as MP3 of 128 kbit/s (which LAME
    makes 0.4 dB quieter), and next to none 6 dB quieter: what it learnt depends on loudness (docs/reliability.md).
    """
    best: tuple[float, int] | None = None
    start = 0
    for vectors in (view.audio.sealed, view.audio.fresh):
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            cosines = vectors[first : first + _ROWS_AT_ONCE] @ audio  # NaN, which is never enough, where there is none
            near = np.flatnonzero(cosines >= at_least)
            for place in near[np.argsort(-cosines[near], kind="stable")]:
                row, cosine = start + first + int(place), float(cosines[place])
                if best is not None and cosine <= best[0]:
                    break
                if _is_another(view, row, but):
                    best = cosine, row
                    break
        start += len(vectors)
    return None if best is None else Near(view.catalogue.track(best[1]).track_id, round(best[0], 4))


def _is_another(view: CollectionView, row: int, but: str) -> bool:
    live = row < view.catalogue.size and bool(view.catalogue.live[row])
    return live and view.catalogue.track(row).track_id != but
