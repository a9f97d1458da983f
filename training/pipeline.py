"""The steps of a training in order, each reading what the one before left in the workspace."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.encoder import Encoder
from index.matcher import Matcher
from index.release import Release
from training.bcl.checkpoint import load_bcl
from training.bcl.config import BclConfig
from training.bcl.export import export_matcher
from training.bcl.train import train_bcl
from training.data.clips import ClipCache
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.embed import Embeddings, embed_catalogue
from training.evaluate import Protocols, evaluate
from training.evaluation.results import Evaluation
from training.larp.checkpoint import load_larp
from training.larp.config import LarpConfig
from training.larp.export import export_towers
from training.larp.training import train_larp
from training.progress import Progress
from training.publish import Trained, publish_release
from training.workspace import Workspace


@dataclass(frozen=True)
class Pipeline:
    """One data set and one workspace. Call the steps in the order they stand here."""

    dataset: DataSet
    workspace: Workspace
    progress: Progress

    def prepare(self) -> None:
        """Decode every file once into the clip cache."""
        split = self.dataset.track_split
        sizes = ", ".join(
            f"{(split == s).sum()} {name}" for s, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test"))
        )
        self.progress.say(
            f"{len(split)} tracks ({sizes}), {len(self.dataset.playlists.ids)} playlists, "
            f"{len(self.dataset.listens.listener_ids) if self.dataset.listens else 0} listeners"
        )
        ClipCache.build(self.dataset, self.workspace.clips, self.progress)

    def train_larp(self, config: LarpConfig) -> None:
        """Train the towers, export them, and embed every track with the exported ones."""
        space = self.workspace
        clips = ClipCache.build(self.dataset, space.clips, self.progress)
        train_larp(self.dataset, clips, space.larp, config, self.progress)
        self.progress.say("exporting the towers")
        _renew(space.encoder, lambda folder: export_towers(load_larp(space.larp), folder))
        embeddings = embed_catalogue(self.dataset, Encoder.open(space.encoder), self.progress)
        _renew(space.vectors, embeddings.save)

    def train_bcl(self, config: BclConfig) -> None:
        """Train the matcher, export it, and give every track its matching vector.

        The listens of training tracks supervise, those of valid tracks choose the epoch.
        """
        space, tracks = self.workspace, self.dataset.tracks
        vectors = self._embeddings().as_dict(("audio", "text", "lyrics"))
        listens, split = self.dataset.listens, self.dataset.track_split
        train_bcl(tracks, vectors, listens, split, space.bcl, config, self.progress)
        self.progress.say("exporting the matcher")
        _renew(space.matcher, lambda folder: export_matcher(load_bcl(space.bcl), folder))
        np.save(space.matching, Matcher.open(space.matcher).vectors(tracks, vectors), allow_pickle=False)

    def evaluate(self, protocols: Protocols) -> list[Evaluation]:
        """Print every table and keep the figures."""
        clauses = Encoder.open(self.workspace.needs(self.workspace.encoder, "larp")).clauses
        tables, left_out = evaluate(self.dataset, self._embeddings(), self._matching(), protocols, clauses)
        for table in tables:
            self.progress.say(f"\n{table.heading()}\n{table.table()}\n")
        for reason in left_out:
            self.progress.say(f"not measured: {reason}")
        figures = {table.task: table.to_json() for table in tables}
        text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
        beside = self.workspace.evaluation.with_suffix(".partial")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.workspace.evaluation)
        return tables

    def publish(self, releases: Path, leave_out: Sequence[int] = ()) -> Release:
        """Publish all tracks but the rows `leave_out`."""
        space = self.workspace
        evaluation = json.loads(space.needs(space.evaluation, "evaluate").read_text(encoding="utf-8"))
        trained = Trained(space.encoder, space.matcher, self._embeddings(), self._matching())
        rows = np.setdiff1d(np.arange(len(self.dataset.tracks)), np.asarray(leave_out, dtype=np.int64))
        release = publish_release(releases, self.dataset, trained, rows, {"evaluation": evaluation})
        self.progress.say(f"published {release.path}")
        return release

    def _embeddings(self) -> Embeddings:
        return Embeddings.load(self.workspace.needs(self.workspace.vectors, "larp"))

    def _matching(self) -> npt.NDArray[np.float32]:
        return np.load(self.workspace.needs(self.workspace.matching, "bcl"), allow_pickle=False)


def _renew(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside, then put it in the old one's place: a step that breaks off leaves the old result."""
    beside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    fill(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
