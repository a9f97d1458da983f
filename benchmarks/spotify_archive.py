"""python -m benchmarks.spotify_archive DATA --text DIR: the preset "captions" against rules, on 250 public playlists.

DATA is a data set directory made of github.com/mackorone/spotify-playlist-archive, beside it track_artists.parquet
(track_id, artist_id), eval_halves.parquet (playlist_id, track_id, role "seed" or "truth") and their _quarterly twins.
It holds Spotify's metadata and must be had from elsewhere: none of it is in this repository. DIR holds a sentence
encoder's config.json, model.safetensors and tokenizer.json (all-MiniLM-L6-v2, for the figures in the docs). 48 lists
are few, and which half of each is given is chance: the halves are also drawn anew, REDRAWS times, and averaged.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from index.models.caption import caption
from training.data.dataset import TEST, DataSet
from training.evaluation import continuation
from training.evaluation.vectors import Vectors, unit
from training.hardware import reproducible
from training.larp.config import LarpConfig
from training.larp.content import BATCH, LiveContent, Rows, encode
from training.larp.heads import FieldsHead
from training.larp.presets import larp_preset
from training.larp.towers import build_larp
from training.larp.training import Run, Trainer
from training.progress import Progress
from training.report.tables import of_evaluation, signed

Queries = list[continuation.ContinuationQuery]
PROTOCOL = continuation.ContinuationProtocol(min_tracks=10, tie_draws=20)
REDRAWS = 20
OURS, FIGURES = "preset captions", ("R@10", "N@10", "R@20", "R@40")


def main(data: Path, text: str, seed: int, features: Path | None) -> None:
    """Train, evaluate on both sets of lists, print Markdown."""
    dataset = DataSet.open(data)
    labels = _artists(dataset, data)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        vectors = _trained(
            dataset, text, seed, Run(Path(folder) / "larp", features=features or Path(folder) / "features")
        )
    took, threads = time.perf_counter() - began, torch.get_num_threads()
    print(f"{dataset.fingerprint[:16]}: trained in {took:.0f} s on {threads} threads, seed {seed}\n")
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=2, dtype=np.float32)
    captions = words.fit_transform([caption(track) for track in dataset.tracks])
    vectors |= {"TF-IDF char_wb 3-5": sparse.csr_array(captions), "shared artist": unit(labels)}
    for name in ("", "_quarterly"):
        queries = _queries(dataset, data / f"eval_halves{name}.parquet")
        _print(f"playlists{name}, all candidates", dataset, vectors, queries)
        _print(f"playlists{name}, other artists", dataset, vectors, continuation.other_labels(queries, labels))
        again = [query for draw in range(REDRAWS) for query in _redrawn(queries, draw)]
        once = replace(PROTOCOL, tie_draws=1)
        _print(f"playlists{name}, {REDRAWS} draws of halves, all candidates", dataset, vectors, again, once)
        again = continuation.other_labels(again, labels)
        _print(f"playlists{name}, {REDRAWS} draws of halves, other artists", dataset, vectors, again, once)


def _print(
    title: str,
    dataset: DataSet,
    vectors: dict[str, Vectors],
    queries: Queries,
    protocol: continuation.ContinuationProtocol = PROTOCOL,
) -> None:
    methods = {name: continuation.mean_of_seeds(rows) for name, rows in vectors.items()}
    groups = {query.playlist: query.playlist.partition("@")[0] for query in queries}  # states of one playlist
    candidates = np.flatnonzero(dataset.track_split == TEST)
    found = continuation.evaluate_continuation(methods, queries, candidates, protocol, groups=groups)
    print(f"\n### {title}: {len(groups)} lists of {len(set(groups.values()))} playlists\n{of_evaluation(found)}\n")
    for other in [*vectors][1:]:
        told = ", ".join(f"{figure} {signed(found.difference(OURS, other, figure))}" for figure in FIGURES)
        print(f"- {OURS} minus {other}: {told}")
    sys.stdout.flush()


def _trained(dataset: DataSet, text: str, seed: int, run: Run) -> dict[str, Vectors]:
    """Vectors of all test tracks: by the preset, before its training (whitened alone), and as the checkpoint is."""
    config = larp_preset("captions", seed=seed)
    config = replace(config, text=replace(config.text, checkpoint=text))
    rows = np.flatnonzero(dataset.track_split == TEST)
    with reproducible(seed, config.loop.threads):
        trainer = Trainer(dataset, None, run, config, Progress(sys.stderr))
        whitened = encode(trainer.larp, "text", trainer.content, rows)
        trainer.train()
        trained = encode(trainer.larp, "text", trainer.content, rows)
        head = trainer.larp.tower("text").head
        assert isinstance(head, FieldsHead)
        weights = head.log_weights.exp().tolist()
    print("weights:", ", ".join(f"{name} {weight:.2f}" for name, weight in zip(config.clauses, weights, strict=True)))
    found = {OURS: trained, "the same, untrained": whitened, "raw encoder": _raw(dataset, config, rows)}
    return {name: _placed(dataset, rows, vectors) for name, vectors in found.items()}


@torch.no_grad()
def _raw(dataset: DataSet, config: LarpConfig, rows: Rows) -> Vectors:
    """Whole captions by the encoder as a sentence encoder is used without training: no head."""
    config = replace(config, freeze=False, caption="sentence")
    content, larp = LiveContent(dataset, None, config), build_larp(config, []).eval()
    tower = larp.tower("text")
    parts = np.array_split(rows, -(-len(rows) // BATCH))
    return np.concatenate([tower.pooled(*content.inputs("text", part, larp)).numpy() for part in parts])


def _placed(dataset: DataSet, rows: Rows, vectors: Vectors) -> Vectors:
    everything = np.full((len(dataset.tracks), vectors.shape[1]), np.nan, np.float32)
    everything[rows] = vectors
    return unit(everything)


def _artists(dataset: DataSet, data: Path) -> sparse.csr_array:
    """Who made each track by artist id, f64 [N, artists]."""
    table = pq.read_table(data / "track_artists.parquet", columns=["track_id", "artist_id"]).to_pydict()
    rows = [dataset.row_of[track] for track in table["track_id"]]
    ids, columns = np.unique(table["artist_id"], return_inverse=True)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(dataset.tracks), len(ids)))


def _queries(dataset: DataSet, path: Path) -> Queries:
    """The data set's own halves."""
    halves: dict[str, dict[str, list[int]]] = {}
    for row in pq.read_table(path).to_pylist():
        half = halves.setdefault(row["playlist_id"], {"seed": [], "truth": []})[row["role"]]
        half.append(dataset.row_of[row["track_id"]])
    parts = {name: (np.array(half["seed"]), np.array(half["truth"])) for name, half in halves.items()}
    return [continuation.ContinuationQuery(name, *parts[name], np.empty(0, np.int64)) for name in sorted(parts)]


def _redrawn(queries: Queries, draw: int) -> Queries:
    """The same lists, each divided anew into halves of the same sizes."""
    rng, found = np.random.default_rng([PROTOCOL.seed, draw]), []
    for query in queries:
        tracks = rng.permutation(np.sort(np.concatenate([query.seeds, query.truth])))
        found.append(replace(query, seeds=tracks[: len(query.seeds)], truth=tracks[len(query.seeds) :]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m benchmarks.spotify_archive")
    parser.add_argument("data", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=Path, help="keeps the encoder's outputs for the next time")
    main(**vars(parser.parse_args()))
