"""From a data set and LARP's vectors to a trained BCL: supervision, fields, loop, checkpoint."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from index.models.fields import FieldSet
from index.tracks.track import Track
from training.bcl.checkpoint import save_bcl
from training.bcl.config import BclConfig, BclError
from training.bcl.fields import choose_fields
from training.bcl.model import Bcl, Inputs
from training.bcl.share import choose_share, joined
from training.bcl.similarity import Listens, Similarity, item_cf, listen_matrix
from training.bcl.supervision import ItemPairs, item_pairs
from training.bcl.task import BclTask, Validation
from training.board import Board
from training.data.splits import TEST, TRAIN, VALID
from training.folders import remove_folder
from training.hardware import pick_device, reproducible
from training.loop import FitResult, fit
from training.progress import Progress
from training.saves import Saves

_SIMILAR = {"itemcf": "ItemCF", "swing": "Swing"}
FEWEST_ITEMS = 4  # that a distance correlation can be measured on


@dataclass(frozen=True)
class BclResult:
    """What a run gave.

    `score` is the best validation Recall@K of z (`selected_on` says which K, or why there is none); `pairs` and
    `anchors` count the supervision; of all tracks `vectors` f32 [N, dims] are z, `matching` f32 [N, dims +
    content_dims] what a release holds; `correlation` [F, F] is the last C.
    """

    model: Bcl
    fit: FitResult
    score: float | None
    selected_on: str
    anchors: int
    pairs: int
    seconds: float
    vectors: NDArray[np.float32]
    matching: NDArray[np.float32]
    correlation: NDArray[np.float32]


def train_bcl(
    tracks: Sequence[Track],
    vectors: Mapping[str, NDArray[np.float32]],
    listens: Listens | None,
    track_split: NDArray[np.int8],
    directory: Path,
    config: BclConfig,
    progress: Progress,
    *,
    further: Sequence[str] = (),
    saves: Path | None = None,
    board: Path | None = None,
    save_every_s: float = 600.0,
) -> BclResult:
    """Train BCL and save it in `directory`.

    `vectors` holds LARP's "audio", "text" and "lyrics" vectors, f32 [N, width] with NaN rows where a track has none;
    `further` columns are fields beyond the usual ones (`choose_fields`). Only listens of train tracks supervise; those
    of valid tracks choose the epoch; those of test tracks are not read. Without co-listening pairs only the contrastive
    loss trains, and progress says so. (Playlists make listeners as well: pass each as one.) The same seed gives the
    same weights on the same machine, whether or not the training was broken off between: one that was goes on from the
    folder `saves`. `board`: folder of TensorBoard's curves. Raises BclError for fewer than 4 train and valid tracks, no
    train track, or nothing to learn from, SavesError for saves of another training, TrainingError.
    """
    began = time.monotonic()
    split = np.asarray(track_split)
    train = np.flatnonzero(split == TRAIN)
    known = int((split != TEST).sum())
    if known < FEWEST_ITEMS or not len(train):
        raise BclError(
            f"BCL needs {FEWEST_ITEMS} tracks in train and valid, some of them in train; got {known} and {len(train)}"
        )
    learnt, known_vectors = [tracks[row] for row in train], {n: rows[train] for n, rows in vectors.items()}
    config = choose_fields(learnt, known_vectors, config, further)
    if silent := sorted({*further} - {spec.column for spec in config.fields}):
        progress.say(f"bcl: {', '.join(silent)} left out: no field, or the same in all train tracks that have it")
    fields = FieldSet.fit(config.fields, learnt, known_vectors, config.min_count)
    inputs = {name: torch.from_numpy(array) for name, array in fields.transform(tracks, vectors).items()}
    pairs, validation = _supervision(listens, split, config)
    if len(fields.groups) < 2:
        if pairs is None:
            raise BclError(f"one field ({fields.groups[0]}) and no co-listening: BCL has nothing to learn from")
        config = replace(config, contrastive_weight=0.0)  # two views need two fields
    _tell(progress, pairs, validation)
    with reproducible(config.loop.seed, config.loop.threads):
        # Not even their content is learnt from: a song that is uploaded later will not have been seen either.
        items = told_apart(inputs, np.flatnonzero(split != TEST))
        model = Bcl(fields, config)
        model.content.fit(inputs, train, config.loop.seed)
        task = BclTask(model, inputs, pairs, validation, pick_device(config.loop.device), items)
        kept = Saves(saves, _made_from(config, inputs, pairs, validation, items), save_every_s) if saves else None
        curves = Board(board, kept.position.step if kept and kept.position else 0) if board else None
        fitted = fit(task, config.loop, progress, kept, curves)
        if curves:
            curves.close()
        found, content = task.vectors(), task.vectors(task.model.content)
    model = task.model.cpu().eval()
    if config.content_share is None:
        model.config = replace(config, content_share=_share(found, content, listens, split, config, progress))
    result = BclResult(
        model,
        fitted,
        fitted.best_score if validation else None,
        f"Recall@{config.validation_cut} of {len(validation.queries)} validation tracks"
        if validation
        else "last epoch",
        len(pairs.anchors) if pairs else 0,
        len(pairs.neighbours.rows) if pairs else 0,
        time.monotonic() - began,
        found,
        joined(found, content, model.config.content_share),
        task.tracker.matrix.numpy(),
    )
    save_bcl(model, directory, model_card(result))
    if saves:
        remove_folder(saves)
    return result


def _share(
    trained: NDArray[np.float32],
    content: NDArray[np.float32],
    listens: Listens | None,
    split: NDArray[np.int8],
    config: BclConfig,
    progress: Progress,
) -> float:
    share, area = choose_share(trained, content, listens, split, config.loop.seed)
    if area is not None:
        progress.say(f"bcl: content counts {share:g} of a matching vector (AUC of validation audiences {area:.4f})")
    return share


def _made_from(
    config: BclConfig,
    inputs: Inputs,
    pairs: ItemPairs | None,
    validation: Validation | None,
    items: NDArray[np.int64],
) -> dict[str, str]:
    """What a training's outcome depends on, as `Saves` compares it."""
    data = hashlib.sha256(items.tobytes())
    for name, array in sorted(inputs.items()):
        data.update(name.encode() + array.numpy().tobytes())
    if pairs:
        for part in (pairs.anchors, pairs.share, pairs.neighbours.indptr, pairs.neighbours.rows, pairs.negatives):
            data.update(part.tobytes())
    if validation:
        for part in (validation.queries, validation.candidates, validation.truth.indptr, validation.truth.rows):
            data.update(part.tobytes())
    return {"settings": hashlib.sha256(config.to_json().encode()).hexdigest()[:16], "data": data.hexdigest()[:16]}


def told_apart(inputs: Inputs, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return those of `rows` with two known fields or more; all of them if they are too few.

    Tracks of which nothing is known are one input: the contrastive loss would push it away from itself. Of a track
    with one known field one view is empty.
    """
    known = np.zeros(len(next(iter(inputs.values()))), np.int64)
    for name, array in inputs.items():
        if name in ("categorical", "numeric_known", "dense_known"):
            known += (array > 0).sum(1).numpy()
        elif name == "multi":
            known += (array > 0).any(2).sum(1).numpy()
    some = rows[known[rows] > 1]
    return some if len(some) >= FEWEST_ITEMS else rows


def _supervision(
    listens: Listens | None, split: NDArray[np.int8], config: BclConfig
) -> tuple[ItemPairs | None, Validation | None]:
    if listens is None:
        return None, None
    train, valid = np.flatnonzero(split == TRAIN), np.flatnonzero(split == VALID)
    known = _matrix(listens, split, (TRAIN,))
    pairs = item_pairs(
        known,
        train,
        top=config.neighbours,
        min_common=config.min_common,
        least=config.least,
        power=config.anchor_power,
        pairs=cast(Similarity, config.pairs),
        alpha=config.swing_alpha,
    )
    if not len(pairs.anchors):
        return None, None
    found = item_cf(
        _matrix(listens, split, (TRAIN, VALID)),
        valid,
        train,
        top=config.neighbours,
        min_common=config.min_common,
    )
    validation = Validation.of(valid, train, found)
    return pairs, validation if len(validation.queries) else None


def _matrix(listens: Listens, split: NDArray[np.int8], parts: tuple[int, ...]) -> sparse.csr_array:
    shape = (len(listens.listener_ids), len(split))
    return listen_matrix(listens.listener, listens.row, shape, np.isin(split, parts))


def _tell(progress: Progress, pairs: ItemPairs | None, validation: Validation | None) -> None:
    if pairs is None:
        progress.say("bcl: no two train tracks share enough listeners: only the contrastive loss trains")
    else:
        progress.say(f"bcl: {len(pairs.neighbours.rows)} pairs of {len(pairs.anchors)} anchor tracks")
    if validation is None:
        progress.say("bcl: no validation track shares listeners with a train track: the last epoch is kept")


def model_card(result: BclResult) -> str:
    """Return the README.md of a checkpoint: what it is, what it read, what was measured."""
    model, config = result.model, result.model.config
    size = sum(p.numel() for p in model.parameters())
    names = ", ".join(f"{spec.name} ({spec.kind})" for spec in config.fields)
    score = "not measured" if result.score is None else f"{result.score:.4f}"
    return f"""# BCL matching encoder

Maps a track's content to a unit vector of {config.dims} in which tracks with similar audiences are near
(Bootstrapping Contrastive Learning, arXiv 2308.02844, written anew from its summary), and beside it, in
{config.content_dims} numbers that count {config.content_share:g} of a cosine, what the track says of itself.

| | |
|---|---|
| fields | {names} |
| embedded fields F | {len(model.fields.groups)} |
| parameters | {size:,} |
| supervision | {result.pairs:,} {_SIMILAR[config.pairs]} pairs of {result.anchors:,} anchor tracks |
| epochs | {len(result.fit.history)} of at most {config.loop.epochs}, best: {result.fit.best_epoch + 1} |
| selected on | {result.selected_on}: {score} |
| seed | {config.loop.seed} |

Files: model.safetensors (weights), config.json (every setting), fields.json (vocabularies and scales).
`training.bcl.checkpoint.load_bcl` loads them; `training.bcl.export.export_matcher` writes what the service
runs.

The vectors say which audience a track's content resembles, as far as the listens it was trained on can tell:
they carry those listeners' biases, and know nothing of popularity.
"""
