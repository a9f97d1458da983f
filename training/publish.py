"""Writes a release: towers, matcher, catalogue, both indexes, audiences, and the figures that were measured."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.audience.cat import write_audience
from index.collection import PARTS, write_collection
from index.models.encoder import encoder_id
from index.release.release import Release, publish
from training.data.dataset import TRAIN, DataSet, Listens
from training.embed import Embeddings
from training.matched import Matched


@dataclass(frozen=True)
class Trained:
    """What training left behind for one data set: exported models and every track's vectors in both spaces."""

    encoder: Path
    matcher: Path
    embeddings: Embeddings
    matched: Matched


def publish_release(
    root: Path, dataset: DataSet, trained: Trained, rows: npt.NDArray[np.int64], facts: Mapping[str, Any]
) -> Release:
    """Publish the tracks `rows` of `dataset` under `root`, atomically.

    Only training listens make audiences, and only training playlists and listens count as interactions: valid and test
    tracks are in the catalogue as cold as they are. Raises what `index.release.release.publish` raises.
    """
    interactions = _interactions(dataset)
    listens = training_listens(dataset)

    def fill(folder: Path) -> None:
        shutil.copytree(trained.encoder, folder / "encoder")
        shutil.copytree(trained.matcher, folder / "matcher")
        write_collection(
            folder,
            [dataset.tracks[row] for row in rows],
            interactions[rows],
            {name: trained.embeddings.part(name)[rows] for name in (*PARTS, "continuation")},
            trained.matched.vectors[rows],
        )
        if listens is not None:
            new_row = np.full(len(dataset.tracks), -1, dtype=np.int64)
            new_row[rows] = np.arange(len(rows))
            kept = new_row[listens.row] >= 0
            write_audience(
                folder / "audience",
                listens.listener_ids,
                listens.listener[kept],
                new_row[listens.row[kept]],
                listens.plays[kept],
                trained.matched.vectors[rows],
                activity=trained.matched.activity,
            )

    counts = {
        "tracks": len(rows),
        "cold_tracks": int((interactions[rows] == 0).sum()),
        "listeners": len(listens.listener_ids) if listens is not None else 0,
    }
    dims = {"continuation": trained.embeddings.continuation.shape[1], "matching": trained.matched.vectors.shape[1]}
    told = {
        "dims": dims,
        "counts": counts,
        "data": dataset.fingerprint,
        "encoder_id": encoder_id(trained.encoder),
    }
    return publish(root, fill, facts={**told, **facts})


def training_listens(dataset: DataSet) -> Listens | None:
    """The listens of training tracks alone: those of valid and test tracks are the hidden truth."""
    listens = dataset.listens
    if listens is None:
        return None
    kept = dataset.track_split[listens.row] == TRAIN
    return Listens(
        listens.listener_ids,
        listens.listener[kept],
        listens.row[kept],
        listens.plays[kept],
        listens.liked[kept],
    )


def _interactions(dataset: DataSet) -> npt.NDArray[np.int32]:
    count = np.zeros(len(dataset.tracks), dtype=np.int32)
    playlists = dataset.playlists
    train = np.repeat(dataset.playlist_split == TRAIN, np.diff(playlists.indptr))
    np.add.at(count, playlists.rows[train], 1)
    listens = training_listens(dataset)
    if listens is not None:
        np.add.at(count, listens.row, 1)
    count[dataset.track_split != TRAIN] = 0
    return count
