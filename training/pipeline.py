"""The steps of a training in order, each reading what the one before left in the workspace."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from index.audience.listening_file import ACTIVITY
from index.models.caption import CLAUSES
from index.models.encoder import Encoder, encoder_id
from index.models.matcher import Matcher
from index.release.release import Release
from training.bcl.checkpoint import load_bcl
from training.bcl.config import BclConfig
from training.bcl.export import export_matcher
from training.bcl.train import train_bcl
from training.data.clips import ClipCache
from training.data.dataset import TEST, TRAIN, VALID, DataSet
from training.distributed import World, joined
from training.embed import Embeddings, embed_catalogue
from training.evaluate import DEBUT, Protocols, evaluate
from training.evaluation.results import Evaluation
from training.folders import remove_folder, replace_folder
from training.larp.checkpoint import load_larp
from training.larp.config import LarpConfig
from training.larp.export import export_towers
from training.larp.towers import front_end
from training.larp.training import Run, train_larp
from training.matched import Matched, choose_activity
from training.progress import Progress, Silent
from training.publish import Trained, publish_release
from training.report.matching_study import MatchingStudy
from training.report.variants import Study
from training.workspace import Workspace

FIGURES = "figures.json"


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

    def train_larp(self, config: LarpConfig, *, fresh: bool = False) -> None:
        """Train the towers, export them, and embed every track with the exported ones.

        A training that was broken off goes on, unless `fresh`. Under torchrun every process trains and the first one
        does the rest.
        """
        space = self.workspace
        if fresh:
            remove_folder(space.saves)
        run = Run(space.larp, space.saves, space.features, space.board)
        with joined() as world:
            clips = self._clips(config, world)
            train_larp(self.dataset, clips, run, config, self.progress if world.first else Silent())
        if not world.first:
            return
        if clips is not None and clips.unreadable:
            self.progress.say(f"{len(clips.unreadable)} audio files could not be read and were not learnt from")
        self.progress.say("exporting the towers")
        replace_folder(space.encoder, lambda folder: export_towers(load_larp(space.larp), folder))
        embeddings = embed_catalogue(self.dataset, Encoder.open(space.encoder), self.progress)
        space.leave(space.vectors, embeddings.save, self._made_from())

    def _clips(self, config: LarpConfig, world: World | None = None) -> ClipCache | None:
        """The clip cache for the audio tower's front end; the first process decodes what it lacks, others wait for it.

        None without an audio tower.
        """
        if "audio" not in config.towers:
            return None
        heard_by = front_end(config)
        folder = heard_by.folder(self.workspace.clips)
        if world is not None and world.first:
            ClipCache.build(self.dataset, folder, self.progress, front_end=heard_by)
        if world is not None:
            world.wait()
        return ClipCache.build(self.dataset, folder, Silent() if world else self.progress, front_end=heard_by)

    def beside(self, dataset: DataSet) -> "Pipeline":
        """A pipeline for another data set, its workspace inside this one's."""
        root = self.workspace.root / "others" / f"{dataset.root.name}-{dataset.fingerprint[:8]}"
        return Pipeline(dataset, Workspace(root), self.progress)

    def study(self, config: LarpConfig) -> Study:
        """What a report on this data set trains its variants with."""
        return Study(self.dataset, self._clips(config), config, self.workspace.root / "report", self.progress)

    def matching_study(self, config: BclConfig, further: Sequence[str] = ()) -> MatchingStudy:
        """What a report on BCL trains its variants with, on LARP's vectors too where `larp` left them; `further` as in
        `train_bcl`.
        """
        there = self.workspace.vectors.exists()
        vectors = self._embeddings().as_dict(("audio", "text", "lyrics")) if there else {}
        folder = self.workspace.root / "report-bcl"
        return MatchingStudy(self.dataset, vectors, config, folder, self.progress, tuple(further))

    def train_bcl(
        self, config: BclConfig, *, fresh: bool = False, further: Sequence[str] = (), alone: bool = False
    ) -> None:
        """Train the matcher, export it, and give every track its matching vector; `further` as in `train_bcl`.

        `alone`: on the attributes, without LARP's vectors. What comes of it can be evaluated, but not published.

        The listens of training tracks supervise, those of valid tracks choose the epoch. A training that was broken off
        goes on, unless `fresh`.
        """
        space, tracks = self.workspace, self.dataset.tracks
        vectors = {} if alone else self._embeddings().as_dict(("audio", "text", "lyrics"))
        listens, split = self.dataset.listens, self.dataset.track_split
        if fresh:
            remove_folder(space.bcl_saves)
        kept = {"saves": space.bcl_saves, "board": space.board / "bcl"}
        train_bcl(tracks, vectors, listens, split, space.bcl, config, self.progress, further=further, **kept)
        self.progress.say("exporting the matcher")
        export_matcher(load_bcl(space.bcl), space.matcher)
        matching = Matcher.open(space.matcher).vectors(tracks, vectors)
        activity = ACTIVITY
        if listens is not None:
            shape = (len(listens.listener_ids), len(tracks))
            plays = sparse.csr_array((np.asarray(listens.plays, np.float64), (listens.listener, listens.row)), shape)
            activity, recall = choose_activity(tracks, matching, plays, split, config.loop.seed)
            if recall is not None:
                self.progress.say(f"audiences: activity counts to the power {activity:g} (valid R@100 {recall:.4f})")
        matched = Matched(matching, config.dims, activity)
        space.leave(space.matching, matched.save, self._made_from())

    def evaluate(self, protocols: Protocols) -> list[Evaluation]:
        """Print every table and keep the figures."""
        space = self.workspace
        embeddings, clauses = None, CLAUSES
        if space.encoder.exists():
            embeddings, clauses = self._embeddings(), Encoder.open(space.encoder).clauses
        tables, left_out = evaluate(self.dataset, embeddings, self._matching(), protocols, clauses)
        for table in tables:
            self.progress.say(f"\n{table.heading()}\n{table.table()}\n")
        for table in tables[: bool(tables and tables[0].task == "continuation")]:
            self.progress.say(f"{table.differences(DEBUT, next(iter(table.chance)))}\n")
        for reason in left_out:
            self.progress.say(f"not measured: {reason}")
        text = json.dumps({table.task: table.to_json() for table in tables}, indent=1, ensure_ascii=False) + "\n"
        space.leave(
            space.evaluation,
            lambda folder: (folder / FIGURES).write_text(text, encoding="utf-8"),
            self._made_from(True),
        )
        return tables

    def publish(self, releases: Path, leave_out: Sequence[int] = ()) -> Release:
        """Publish all tracks but the rows `leave_out`."""
        space = self.workspace
        trained = Trained(space.encoder, space.matcher, self._embeddings(), self._matching())
        figures = space.needs(space.evaluation, "evaluate", self._made_from(True)) / FIGURES
        rows = np.setdiff1d(np.arange(len(self.dataset.tracks)), np.asarray(leave_out, dtype=np.int64))
        facts = {"evaluation": json.loads(figures.read_text(encoding="utf-8"))}
        release = publish_release(releases, self.dataset, trained, rows, facts)
        self.progress.say(f"published {release.path}")
        return release

    def _embeddings(self) -> Embeddings:
        self.workspace.has(self.workspace.encoder, "larp")
        return Embeddings.load(self.workspace.needs(self.workspace.vectors, "larp", self._made_from()))

    def _matching(self) -> Matched:
        self.workspace.has(self.workspace.matcher, "bcl")
        folder = self.workspace.needs(self.workspace.matching, "bcl", self._made_from())
        return Matched.load(folder)

    def _made_from(self, matched: bool = False) -> dict[str, str]:
        """What a step's result depends on: the data set, the towers, and if `matched` the matching vectors too."""
        towers = self.workspace.encoder
        made_from = {"data": self.dataset.fingerprint, "encoder": encoder_id(towers) if towers.exists() else "none"}
        if matched:
            made_from["matching"] = Matched.load(self.workspace.matching).digest
        return made_from
