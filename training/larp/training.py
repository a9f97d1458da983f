"""LARP's pre-training from a data set to a checkpoint: three stages, weights carried over."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.board import Board
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.distributed import world
from training.folders import recover_folder, remove_folder
from training.hardware import pick_device, reproducible
from training.larp.card import model_card
from training.larp.checkpoint import save_larp
from training.larp.config import LarpConfig, StageConfig
from training.larp.content import BATCH, Content, LiveContent, encode
from training.larp.corpus import Corpus, CorpusError
from training.larp.features import FrozenContent
from training.larp.fitting import evenly, spread_heads
from training.larp.hub import checkpoint_fingerprint
from training.larp.model import Larp
from training.larp.pretraining import Pretraining
from training.larp.result import LarpResult
from training.larp.task import LarpTask
from training.larp.towers import build_larp
from training.larp.validation import validation_of
from training.loop import FitResult, fit
from training.progress import Progress
from training.saves import Saves

AfterStage = Callable[[str, Larp, Content], None]
"""Called with "untrained", then with each stage's losses ("wtc", "wtc+ttc", ...), and the model as it then stands."""


@dataclass(frozen=True)
class Run:
    """A training's surroundings. directory: of the checkpoint. Beside it, under its name with an ending, a training
    that is broken off leaves its saves (.saves) and goes on from them, frozen encoders' outputs are kept (.features),
    and TensorBoard finds its curves (.board); each None turns that off.
    """

    directory: Path
    saves: Path | None = None
    features: Path | None = None
    board: Path | None = None
    save_every_s: float = 600.0
    after_stage: AfterStage | None = None


def train_larp(
    dataset: DataSet, clips: ClipCache | None, run: Run, config: LarpConfig, progress: Progress
) -> LarpResult:
    """Train all stages of `config` and write the checkpoint to `run.directory` (`checkpoint.load_larp` reads it).

    The same data, config and machine give the same weights, bit by bit, whether or not the run was broken off between.
    On several ranks (torchrun) all train, and the first one writes. Raises CorpusError, CheckpointError, SavesError,
    TrainingError.
    """
    with reproducible(config.loop.seed, config.loop.threads):
        trainer = Trainer(dataset, clips, run, config, progress)
        result = trainer.train()
    if world().first:
        share = trainer.larp.audio_share.item()
        save_larp(trainer.larp, config, run.directory, model_card(dataset, config, result, share))
        if run.saves:
            remove_folder(run.saves)
    world().wait()
    return result


class Trainer:
    """One training's parts. `train` runs all stages; who wants to compare ways to go on (an ablation) calls
    `stage` and `branch` instead.
    """

    def __init__(
        self, dataset: DataSet, clips: ClipCache | None, run: Run, config: LarpConfig, progress: Progress
    ) -> None:
        self.run, self.config, self.progress = run, config, progress
        device = pick_device(config.loop.device)
        self.saves = self._saves(made_from(dataset, clips, config))
        live = LiveContent(dataset, clips, config)
        self.corpus = Corpus(dataset, live, config)
        progress.say(
            f"LARP learns from {len(self.corpus)} tracks in {len(self.corpus.pairs.lengths)} playlists on {device}"
            + (f", {world().size} processes" if world().size > 1 else "")
        )
        self._check_batches()
        self.larp = build_larp(config, live.captions(self.corpus.rows)).to(device)
        if self.larp.audio is not None and config.audio.checkpoint is None:
            self.larp.audio.calibrate(*input_statistics(live, self.corpus.rows))
        self.content: Content = self._frozen(live) if config.freeze else live
        self.corpus.content = self.content
        if config.spread:
            spread_heads(self.larp, self.corpus)
        self.pretraining = Pretraining(self.larp, config, len(self.corpus)).to(device)
        self.validation = validation_of(dataset, self.content, config)

    def branch(self, config: LarpConfig, state: Mapping[str, Tensor]) -> "Trainer":
        """Return a trainer of the same towers, queue and tables as `state` (`pretraining.state_dict()`, copied) holds
        them, that goes on with other settings of batches, losses or fusion. The towers are shared: one at a time.
        """
        other = copy.copy(self)
        other.config, other.run, other.saves = config, replace(self.run, saves=None), None
        other.corpus = copy.copy(self.corpus)
        other.corpus.config = config
        other.pretraining = Pretraining(self.larp, config, len(self.corpus)).to(self.larp.device)
        kept = {name: tensor for name, tensor in state.items() if "fusion." not in name}
        other.pretraining.load_state_dict(kept, strict=False)
        return other

    def _frozen(self, live: LiveContent) -> FrozenContent:
        """The encoders' outputs; the first rank computes what is not there, the others then find it."""
        if self.run.features is None:
            raise ValueError("freeze needs a folder for the encoders' outputs")
        if world().first:
            FrozenContent.build(self.larp, live, self.run.features, self.progress)
        world().wait()
        return FrozenContent.build(self.larp, live, self.run.features, self.progress)

    def _saves(self, facts: dict[str, str]) -> Saves | None:
        if self.run.saves is None:
            return None
        if world().first:
            recover_folder(self.run.saves)
        world().wait()  # so that all ranks find the same
        return Saves(self.run.saves, facts, self.run.save_every_s)

    def _check_batches(self) -> None:
        """Every rank must have a track of the smallest batch."""
        if len(self.corpus) // self.corpus.steps(paired=True) < world().size:
            raise CorpusError(
                f"{len(self.corpus)} tracks in batches of {self.config.batch_size} are too few for {world().size} "
                "processes: raise the batch size, or start fewer"
            )

    def train(self) -> LarpResult:
        """Run all stages. Raises CorpusError where none has anything to learn from."""
        result = LarpResult(*self._untrained())
        for number in range(1, len(self.config.stages) + 1):
            found = self.stage(number)
            if found:
                result.stages[found[0]] = found[1]
        if not result.stages:
            raise CorpusError(
                "no stage has anything to learn from: a tower alone needs training playlists of two tracks"
            )
        self.pretraining.eval()
        return result

    def stage(self, number: int) -> tuple[str, FitResult] | None:
        """Run one stage (counted from 1); return its losses and outcome, None where there was nothing to learn from."""
        stage = self.config.stages[number - 1]
        losses = self._useful(stage)
        if not losses:
            return None
        return "+".join(losses), self._fit(number, replace(stage, losses=losses))

    def _untrained(self) -> tuple[str, float | None]:
        name = self.validation.name if self.validation else "none (no validation tracks)"
        self._tell("untrained")
        if self.validation is None:
            return name, None
        if self.saves and "untrained" in self.saves.facts:
            return name, self.saves.facts["untrained"]
        score = self.validation.score(self.larp.eval()) if world().first else 0.0
        score = world().from_first([score], self.larp.device)[0]
        if self.saves:
            self.saves.facts["untrained"] = score
        return name, score

    def _useful(self, stage: StageConfig) -> tuple[str, ...]:
        """The stage's losses that there is something to learn from."""
        names = "+".join(stage.losses).upper()
        losses = stage.losses
        if len(self.config.towers) == 1:
            losses = tuple(name for name in losses if name != "wtc")
            if not losses:
                self.progress.say(f"the stage {names} is left out: within-track contrast needs two towers")
        if self.corpus.pairs.empty and losses and losses != ("wtc",):
            self.progress.say(f"the stage {names} is left out: no training playlist has two tracks to learn from")
            return ()
        return losses

    def _fit(self, number: int, stage: StageConfig) -> FitResult:
        name = f"LARP stage {number}/{len(self.config.stages)} ({'+'.join(stage.losses).upper()})"
        at = self.saves.position if self.saves and self.saves.started(name) else None
        if self.saves and at is None and name in self.saves.results:
            return self.saves.results[name]  # a later stage's save will bring the weights
        if "tpc" in stage.losses and self.config.tables == "pass" and at is None:
            fill_tables(self.pretraining, self.corpus)
        task = LarpTask(name, number, stage, self.pretraining, self.corpus, self.validation)
        board = None
        if self.run.board and world().first:
            board = Board(self.run.board / f"stage {number}", at.step if at else 0)
        found = fit(task, self.config.loop_of(stage), self.progress, self.saves, board)
        if board:
            board.close()
        score_name = self.validation.name if self.validation else "epoch"
        self.progress.say(f"{name}: {score_name} {found.best_score:.4f} in epoch {found.best_epoch + 1}")
        self._tell("+".join(stage.losses))
        return found

    def _tell(self, name: str) -> None:
        if self.run.after_stage and world().first:
            self.pretraining.eval()
            self.run.after_stage(name, self.larp, self.content)


def made_from(dataset: DataSet, clips: ClipCache | None, config: LarpConfig) -> dict[str, str]:
    """What a training's outcome depends on, as `Saves` compares it."""
    settings = json.dumps(config.to_json(), sort_keys=True)
    facts = {"settings": hashlib.sha256(settings.encode()).hexdigest()[:16], "data": dataset.fingerprint}
    facts |= {"audio": clips.fingerprint} if clips else {}
    used = {name: getattr(config, name).checkpoint for name in config.towers}
    return facts | {f"{name} checkpoint": checkpoint_fingerprint(path) for name, path in used.items() if path}


def input_statistics(live: LiveContent, rows: np.ndarray, most: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each mel bin over the middle clips of up to `most` of the tracks, f32 [64] each."""
    assert live.clips is not None
    chosen = rows[evenly(len(rows), most)]
    clips = np.concatenate([live.clips.crops(part, None) for part in np.array_split(chosen, -(-len(chosen) // BATCH))])
    mean, variance = clips.mean((0, 1, 2), np.float64), clips.var((0, 1, 2), np.float64)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(variance.astype(np.float32))


def fill_tables(pretraining: Pretraining, corpus: Corpus) -> None:
    """Fill the lookup tables A and T by one pass over all training tracks: middle clips, whole captions."""
    larp = pretraining.eval().online
    for name in larp.names:
        vectors = encode(larp, name, corpus.content, corpus.rows)
        pretraining.table(name).copy_(torch.from_numpy(vectors))
