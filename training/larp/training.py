"""LARP's pre-training from a data set to a checkpoint: three stages, weights carried over."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.card import model_card
from training.larp.checkpoint import load_larp, save_larp
from training.larp.config import LarpConfig
from training.larp.corpus import Corpus
from training.larp.model import Larp, spread
from training.larp.pretraining import Pretraining
from training.larp.task import LarpTask
from training.larp.towers import build_larp
from training.larp.validation import validation_of
from training.loop import FitResult, fit, pick_device, reproducible
from training.progress import Progress

__all__ = ["LarpResult", "load_larp", "train_larp"]


@dataclass(frozen=True)
class LarpResult:
    """What a training found: how validation scored it (`score_name`), untrained and after each stage."""

    score_name: str
    untrained_score: float | None
    stages: dict[str, FitResult] = field(default_factory=dict)

    @property
    def best_score(self) -> float:
        """The score of the weights that were kept: those of the last stage's best epoch."""
        return [*self.stages.values()][-1].best_score


def train_larp(
    dataset: DataSet, clips: ClipCache, directory: Path, config: LarpConfig, progress: Progress
) -> LarpResult:
    """Train all stages of `config` and write the checkpoint to `directory` (`checkpoint.load_larp` reads it).

    The same data, config and machine give the same weights, bit by bit. Raises CorpusError, CheckpointError,
    TrainingError.
    """
    with reproducible(config.loop):
        device = pick_device(config.loop.device)
        corpus = Corpus(dataset, clips, config)
        progress.say(f"LARP learns from {len(corpus)} tracks in {len(corpus.pairs.lengths)} playlists on {device}")
        larp = build_larp(config, corpus.captions(np.arange(len(corpus))))
        if config.audio.checkpoint is None:
            larp.audio.calibrate(*corpus.input_statistics())
        spread_heads(larp, corpus)
        pretraining = Pretraining(larp, config, len(corpus)).to(device)
        result = _train_stages(pretraining, corpus, dataset, clips, config, progress)
    save_larp(larp, config, directory, model_card(dataset, config, result, larp.audio_share.item()))
    return result


def _train_stages(
    pretraining: Pretraining,
    corpus: Corpus,
    dataset: DataSet,
    clips: ClipCache,
    config: LarpConfig,
    progress: Progress,
) -> LarpResult:
    rng = np.random.default_rng(config.loop.seed)
    validation = validation_of(dataset, clips, config)
    result = LarpResult(
        validation.name if validation else "none (no validation tracks)",
        validation.score(pretraining.online.eval()) if validation else None,
    )
    for number, stage in enumerate(config.stages, 1):
        if corpus.pairs.empty and stage.losses != ("wtc",):
            progress.say(f"stage {number} is left out: no training playlist has two tracks to learn from")
            continue
        name = f"LARP stage {number}/{len(config.stages)} ({'+'.join(stage.losses).upper()})"
        if "tpc" in stage.losses:
            fill_tables(pretraining, corpus)
        task = LarpTask(name, stage, pretraining, corpus, validation, rng)
        found = fit(task, config.loop_of(stage), progress)
        result.stages["+".join(stage.losses)] = found
        progress.say(f"{name}: {result.score_name} {found.best_score:.4f} in epoch {found.best_epoch + 1}")
    pretraining.eval()
    return result


@torch.no_grad()
def spread_heads(larp: Larp, corpus: Corpus, most: int = 512) -> None:
    """Fit the untrained heads to what the encoders say of up to `most` training tracks (`model.spread`)."""
    larp.eval()
    chosen = np.linspace(0, len(corpus) - 1, min(most, len(corpus))).astype(np.int64)
    audio, text = [], []
    for part in np.array_split(chosen, -(-len(chosen) // 64)):
        audio.append(larp.audio.pooled(torch.from_numpy(corpus.clips.crops(corpus.rows[part], None))))
        text.append(larp.text.pooled(*larp.tokens(corpus.captions(part))))
    spread(larp.audio.head, torch.cat(audio))
    spread(larp.text.head, torch.cat(text))
    larp.train()


@torch.no_grad()
def fill_tables(pretraining: Pretraining, corpus: Corpus) -> None:
    """Fill the lookup tables A and T by one pass over all training tracks: middle clips, whole captions."""
    larp = pretraining.eval().online
    for part in np.array_split(np.arange(len(corpus)), -(-len(corpus) // 64)):
        clips = torch.from_numpy(corpus.clips.crops(corpus.rows[part], None))
        where = torch.from_numpy(part).to(larp.device)
        pretraining.audio_table[where] = larp.encode_audio(clips)
        pretraining.text_table[where] = larp.encode_text(corpus.captions(part))
