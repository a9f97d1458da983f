"""Outputs of frozen encoders, computed once: `freeze` trains heads on them, an epoch in seconds."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.errors import DebutError
from training.larp.content import BATCH, LiveContent, on
from training.larp.model import Larp
from training.larp.towers import encoder_configs
from training.progress import Progress

Rows = NDArray[np.int64]
_FLUSH = 64  # batches between notes of how far a broken off computation had come


class FeatureError(DebutError):
    """Features that another encoder gave, or too large for their type."""

    code = "features_unusable"


@dataclass(frozen=True)
class FrozenContent:
    """Encoder outputs of every track by tower, f16 [N, width] in memory-mapped files: 1.5 kB a track and tower."""

    features: dict[str, NDArray[np.float16]]
    known: dict[str, NDArray[np.bool_]]
    frozen: bool = True

    def available(self, name: str) -> NDArray[np.bool_]:
        """Which tracks have what the tower reads, bool [N]."""
        return self.known[name]

    def inputs(
        self,
        name: str,
        rows: Rows,
        larp: Larp,  # noqa: ARG002
        rngs: Sequence[np.random.Generator] | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """Encoder outputs f32 [B, width]; nothing about them is varied in training."""
        return (torch.from_numpy(self.features[name][rows].astype(np.float32)),)

    @classmethod
    def build(cls, larp: Larp, live: LiveContent, directory: Path, progress: Progress) -> "FrozenContent":
        """Compute what `directory` does not hold yet of the middle clip and the whole caption of every track.

        A computation that was broken off goes on where it was. Raises FeatureError when an output does not fit f16.
        """
        directory.mkdir(parents=True, exist_ok=True)
        features, known = {}, {}
        for name in larp.names:
            known[name] = live.available(name)
            features[name] = _computed(larp, name, live, directory, progress)
        return cls(features, known)


def _computed(larp: Larp, name: str, live: LiveContent, directory: Path, progress: Progress) -> NDArray[np.float16]:
    rows = _in_order(name, live)
    shape = (len(live.available(name)), larp.tower(name).head.in_features)
    path = directory / f"{name}-{_key(larp, name, live, rows)}.f16"
    note = path.with_suffix(".json")
    done = _done(path, note, shape)
    data = np.memmap(path, np.float16, "r+" if path.exists() else "w+", shape=shape)
    if done < len(rows):
        with progress.stage(f"{name} encoder, frozen", len(rows)) as stage:
            stage.advance(done)
            for count, (part, found) in enumerate(_encoded(larp, name, live, rows[done:]), 1):
                data[part] = found
                done += len(part)
                stage.advance(len(part))
                if count % _FLUSH == 0 or done == len(rows):
                    data.flush()
                    _write(note, done)
    return np.memmap(path, np.float16, "r", shape=shape)


def _in_order(name: str, live: LiveContent) -> Rows:
    """The tracks that have what the tower reads; captions of like length together, since a batch is padded to its
    longest.
    """
    rows = np.flatnonzero(live.available(name))
    if name != "text":
        return rows
    lengths = [max(map(len, caption.split("\n"))) for caption in live.captions(rows)]
    return rows[np.argsort(lengths, kind="stable")]


@torch.no_grad()
def _encoded(larp: Larp, name: str, live: LiveContent, rows: Rows) -> Iterable[tuple[Rows, NDArray[np.float16]]]:
    tower = larp.tower(name).eval()
    for part in (rows[k : k + BATCH] for k in range(0, len(rows), BATCH)):
        found = tower.pooled(*on(larp.device, live.inputs(name, part, larp))).float().cpu().numpy()
        if not np.isfinite(found).all() or np.abs(found).max() > np.finfo(np.float16).max:
            raise FeatureError(f"the {name} encoder's outputs do not fit 16 bit: train it without --freeze")
        yield part, found.astype(np.float16)


def _key(larp: Larp, name: str, live: LiveContent, rows: Rows) -> str:
    """What the features depend on: the encoder's weights, and the clips or captions of all tracks."""
    digest = hashlib.sha256()
    shape = dict(zip(("audio", "text"), encoder_configs(larp), strict=True))[name]  # heads show in no weight
    digest.update(json.dumps(shape, sort_keys=True, default=str).encode())
    for tensor in larp.tower(name).encoder.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.ndim else b"")
    if name == "text":
        assert larp.tokenizer is not None
        assert larp.text is not None
        digest.update(f"{larp.text.pooling} {larp.tokenizer.to_str()}".encode())
        digest.update("\n".join(live.captions(rows)).encode())
    else:
        assert live.clips is not None
        digest.update(live.clips.fingerprint.encode())
    digest.update(rows.tobytes())
    return digest.hexdigest()[:16]


def _done(path: Path, note: Path, shape: tuple[int, int]) -> int:
    try:
        if path.stat().st_size != 2 * shape[0] * shape[1]:
            raise ValueError
        done = json.loads(note.read_text("utf-8"))["done"]
        return int(done)
    except (OSError, ValueError, KeyError, TypeError):
        path.unlink(missing_ok=True)
        return 0


def _write(note: Path, done: int) -> None:
    part = note.with_suffix(".part")
    part.write_text(json.dumps({"done": done}), "utf-8")
    os.replace(part, note)
