"""What a golden release answers, as figures to write down and to compare."""

from pathlib import Path
from typing import Any

import numpy as np

from index.audience.cat import Audience
from index.collection import PARTS, Collection
from index.models.encoder import Encoder
from index.models.matcher import Matcher
from index.release.release import FORMAT, Release
from index.sound.features import FRAMES, MELS
from index.tracks.catalogue import Filters
from index.tracks.track import Track

HERE = Path(__file__).resolve().parent
FOLDER = HERE / f"format-{FORMAT}"
"""The golden release of the format that this code writes: `release` and `figures.json`."""


def clip() -> np.ndarray:
    """One clip's log-mel f32 [1, 1001, 64], in dB, the same everywhere."""
    frames, mels = np.arange(FRAMES)[:, None], np.arange(MELS)[None]
    return (-40 + 30 * np.sin(0.01 * frames + 0.3 * mels))[None].astype(np.float32)


def figures(path: Path) -> dict[str, Any]:
    """Open a release as the service does and ask each of its parts."""
    release = Release.open(path)
    collection, encoder = Collection.open(release), Encoder.open(release.path / "encoder", 1)
    view = collection.view()

    def track_id(row: int) -> str:
        return view.catalogue.track(int(row)).track_id

    cold = Track("cold", title="Wald im Mai", artist="Franz", language="de", attributes={"born": 1990.0})
    vectors = encoder.track(clip(), encoder.caption(cold), None)
    dense = {"audio": vectors.audio[None], "text": vectors.text[None]}
    placed = Matcher.open(release.path / "matcher", 1).vectors([cold], dense)[0]
    scores, rows = view.continuation.search(vectors.continuation, 5)
    audience = Audience.open(release).target(placed, view, row=None, clusters=3, limit=5)
    heard = Filters(genres=("folk",))
    return {
        "release": release.id,
        "tracks": len(view),
        "continuation": vectors.continuation.tolist(),
        "matching": placed.tolist(),
        "playlist": [[track_id(r), float(s)] for r, s in zip(rows[0], scores[0], strict=True)],
        "parts": [view.space(name).vectors([3])[0, :4].tolist() for name in PARTS],
        "sketch": vectors.sketch.tolist(),
        "folk": [track_id(row) for row in np.flatnonzero(view.catalogue.mask(heard))],
        "cold": [track_id(row) for row in np.flatnonzero(view.catalogue.mask(Filters(only_cold=True)))],
        "search": [track_id(row) for row in view.catalogue.search("abend", 5)],
        "listeners": [[t.listener_id, t.score, t.cluster] for t in audience.listeners],
        "neighbours": [[n.track_id, n.similarity] for n in audience.neighbours],
    }
