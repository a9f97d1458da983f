"""Trains LARP in the variants that the tables and figures compare, and keeps every track's vectors by each."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.folders import replace_folder
from training.hardware import reproducible
from training.larp.config import LOSSES, LarpConfig, SettingsError
from training.larp.content import BATCH, Content, LiveContent, Vectors, encode, on, together
from training.larp.corpus import CorpusError
from training.larp.model import Larp
from training.larp.training import Run, Trainer, made_from
from training.loop import FitResult, copy_state
from training.progress import Progress

RAW, UNTRAINED, PLAIN, FULL = "raw", "untrained", "LARP-TPC, no fusion", "LARP-TPC-fusion"
STAGES = {"wtc": "LARP-WTC", "wtc+ttc": "LARP-TTC", "ttc": "LARP-TTC"}
NOTE = "variant.json"


@dataclass(frozen=True)
class Variant:
    """What one way of training gave: by tower, vectors f32 [N, d] of all tracks (NaN where there are none).

    share: w of l2(w audio + (1 - w) text). history: (stage, epoch, validation score), as it was trained; score_name: of
    what, "" where there is no validation.
    """

    name: str
    vectors: Mapping[str, Vectors]
    share: float
    history: list[tuple[str, int, float]] = field(default_factory=list)
    score_name: str = ""

    @property
    def joined(self) -> Vectors:
        """The tracks' own vectors (Eq. 11)."""
        return together(dict(self.vectors), self.share)

    def save(self, folder: Path) -> None:
        """Write one .npy a tower and the rest as JSON."""

        def fill(inside: Path) -> None:
            for tower, vectors in self.vectors.items():
                np.save(inside / f"{tower}.npy", vectors, allow_pickle=False)
            note = {"name": self.name, "share": self.share, "history": self.history, "towers": [*self.vectors]}
            (inside / NOTE).write_text(json.dumps(note | {"score_name": self.score_name}), "utf-8")

        replace_folder(folder, fill)

    @classmethod
    def load(cls, folder: Path) -> "Variant":
        """Read what `save` wrote."""
        note = json.loads((folder / NOTE).read_text("utf-8"))
        vectors = {tower: np.load(folder / f"{tower}.npy", allow_pickle=False) for tower in note["towers"]}
        history = [tuple(row) for row in note["history"]]
        return cls(note["name"], vectors, note["share"], history, note.get("score_name", ""))


@dataclass(frozen=True)
class Study:
    """A data set and the settings whose variants are compared. Vectors stay in `folder`, so that a report that is
    broken off, or written again, trains only what is missing: the ablation (as a whole), or single settings.
    """

    dataset: DataSet
    clips: ClipCache | None
    config: LarpConfig
    folder: Path
    progress: Progress

    def ablation(self, seeds: tuple[int, ...] = ()) -> dict[str, Variant]:
        """Raw encoders, untrained, after each stage, TPC with and without fusion; by name, in that order.

        `seeds`: further values of J for the last stage, as "J = 5". Raises SettingsError for other stages than the
        paper's three, CorpusError where the later two have nothing to learn from.
        """
        if [stage.losses for stage in self.config.stages] != [LOSSES[: n + 1] for n in range(len(LOSSES))]:
            found = ", ".join("+".join(stage.losses).upper() for stage in self.config.stages)
            raise SettingsError(f"a report compares LARP's three stages, and these settings have {found}: take others")
        last = {PLAIN: {"fusion": "mean"}, FULL: {}} | {f"J = {count}": {"seeds": count} for count in seeds}
        done = self._known([RAW, UNTRAINED, *self._early(), *last])
        if done is None:
            with reproducible(self.config.loop.seed, self.config.loop.threads):
                self._train_all(last)
            done = self._known([RAW, UNTRAINED, *self._early(), *last])
        assert done is not None
        return done

    def changed(self, name: str, change: Mapping[str, Any]) -> Variant:
        """The full model trained from the start with other settings."""
        found = self._known([name])
        if found is None:
            config = replace(self.config, **change)
            with reproducible(config.loop.seed, config.loop.threads):
                trainer = self._trainer(config)
                history: list[tuple[str, int, float]] = []
                for number in range(1, len(config.stages) + 1):
                    history += _history(trainer.stage(number))
                self._keep(name, trainer, history)
            found = self._known([name])
        assert found is not None
        return found[name]

    def transferred(self, dataset: DataSet, clips: ClipCache | None) -> Variant:
        """The full model trained here, and what it makes of another data set's tracks (Table 4)."""
        name = f"{FULL} on {dataset.fingerprint[:16]}"
        found = self._known([name])
        if found is None:
            with reproducible(self.config.loop.seed, self.config.loop.threads):
                trainer = self._trainer(self.config)
                for number in range(1, len(self.config.stages) + 1):
                    trainer.stage(number)
                larp = trainer.pretraining.eval().online
                live, rows = LiveContent(dataset, clips, self.config), np.arange(len(dataset.tracks))
                vectors = {tower: encode(larp, tower, live, rows) for tower in larp.names}
                Variant(name, vectors, larp.audio_share.item()).save(self._path(name))
            found = self._known([name])
        assert found is not None
        return found[name]

    def _early(self) -> list[str]:
        two = len(self.config.towers) == 2
        return ["LARP-WTC", "LARP-TTC"] if two else ["LARP-TTC"]

    def _trainer(self, config: LarpConfig) -> Trainer:
        run = Run(self.folder / "none", features=self.folder.parent / "larp.features")
        return Trainer(self.dataset, self.clips, run, config, self.progress)

    def _train_all(self, last: Mapping[str, Mapping[str, Any]]) -> None:
        trainer = self._trainer(self.config)
        if trainer.corpus.pairs.empty:
            raise CorpusError("no training playlist has two tracks to learn from: there are no stages to compare")
        Variant(RAW, _raw(trainer.larp, trainer.content, len(self.dataset.tracks)), 0.5).save(self._path(RAW))
        if trainer.validation:
            trainer.validation.score(trainer.larp.eval())  # chooses the audio share
        self._keep(UNTRAINED, trainer, [])
        history: list[tuple[str, int, float]] = []
        for number in range(1, len(self.config.stages)):
            found = trainer.stage(number)
            history += _history(found)
            if found:
                self._keep(STAGES[found[0]], trainer, history)
        state = copy_state(dict(trainer.pretraining.state_dict()))
        for name, change in last.items():
            self.progress.say(f"variant: {name}")
            branch = trainer.branch(replace(self.config, **change), state)
            self._keep(name, branch, history + _history(branch.stage(len(self.config.stages))))

    def _keep(self, name: str, trainer: Trainer, history: list[tuple[str, int, float]]) -> None:
        larp = trainer.pretraining.eval().online
        rows = np.arange(len(self.dataset.tracks))
        vectors = {tower: encode(larp, tower, trainer.content, rows) for tower in larp.names}
        score_name = trainer.validation.name if trainer.validation else ""
        Variant(name, vectors, larp.audio_share.item(), history, score_name).save(self._path(name))

    def _path(self, name: str) -> Path:
        key = made_from(self.dataset, self.clips, self.config)
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)
        return self.folder / "-".join(value[:8] for value in key.values()) / plain

    def _known(self, names: list[str]) -> dict[str, Variant] | None:
        if not all((self._path(name) / NOTE).is_file() for name in names):
            return None
        return {name: Variant.load(self._path(name)) for name in names}


def _history(found: tuple[str, FitResult] | None) -> list[tuple[str, int, float]]:
    return [(found[0], int(row["epoch"]), row["score"]) for row in found[1].history] if found else []


@torch.no_grad()
def _raw(larp: Larp, content: Content, count: int) -> dict[str, Vectors]:
    """The encoders' own outputs before any head, unit length, by tower."""
    larp.eval()
    out = {}
    for name in larp.names:
        tower = larp.tower(name)
        vectors: NDArray[np.float32] = np.full((count, tower.head.in_features), np.nan, np.float32)
        known = np.flatnonzero(content.available(name))
        read: Callable[..., torch.Tensor] = (lambda pooled: pooled) if content.frozen else tower.pooled
        for part in (known[k : k + BATCH] for k in range(0, len(known), BATCH)):
            pooled = read(*on(larp.device, content.inputs(name, part, larp))).float()
            vectors[part] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        out[name] = vectors
    return out
