"""Training BCL end to end on a small world with two audiences, and its checkpoints."""

import io
import json
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index.models.fields import FieldSpec
from index.tracks.track import Track
from training.bcl.checkpoint import bcl_vectors, load_bcl
from training.bcl.config import BclConfig, BclError
from training.bcl.fields import choose_fields
from training.bcl.similarity import Neighbours, item_cf, listen_matrix
from training.bcl.supervision import item_pairs
from training.bcl.task import BclTask, Validation
from training.bcl.train import _supervision, told_apart, train_bcl
from training.data.splits import TEST, TRAIN, VALID
from training.evaluation.baselines import random_matching
from training.evaluation.matching import MatchingProtocol, evaluate_matching, inner_product, matching_task
from training.folders import replace_folder
from training.loop import LoopConfig
from training.progress import Progress, Silent
from training.saves import SavesError

CONFIG = BclConfig(
    field_dims=8,
    hidden=(32,),
    dims=16,
    projected=8,
    batch=64,
    items=32,
    steps=6,
    correlation_every=3,
    correlation_sample=40,
    correlation_batch=20,
    unknown_rate=0.2,
    validation_cut=10,
    loop=LoopConfig(epochs=6, lr=3e-3, patience=6, precision="fp32", threads=1, seed=1),
)


@dataclass
class Listens:
    listener_ids: list[str]
    listener: np.ndarray
    row: np.ndarray


@dataclass
class World:
    """90 tracks of three kinds; a listener hears mostly one kind; the kind shows in the content, not in the artist."""

    tracks: list[Track]
    vectors: dict[str, np.ndarray]
    listens: Listens
    split: np.ndarray
    kind: np.ndarray


def world(seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, 90)
    taste = rng.integers(0, 3, 150)
    heard = rng.random((150, 90)) < np.where(taste[:, None] == kind[None, :], 0.3, 0.03)
    listener, row = np.nonzero(heard)
    audio = rng.standard_normal((90, 32)).astype(np.float32)
    audio[:, :3] += 2.5 * np.eye(3)[kind]
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    audio[::17] = np.nan
    names = [f"artist {i}" for i in rng.integers(0, 30, 90)]
    tracks = [
        Track(f"t{i}", artist=names[i], language=("en", "de")[int(kind[i] == 0)], genres=("live",) * (i % 2))
        for i in range(90)
    ]
    split = np.full(90, TRAIN, np.int8)
    split[60:75], split[75:] = VALID, TEST
    return World(tracks, {"audio": audio}, Listens([f"u{i}" for i in range(150)], listener, row), split, kind)


def train(place: World, directory, config: BclConfig = CONFIG, progress: Progress | None = None):
    return train_bcl(place.tracks, place.vectors, place.listens, place.split, directory, config, progress or Silent())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = world()
    directory = tmp_path_factory.mktemp("bcl") / "bcl"
    return place, train(place, directory), directory


def test_cold_tracks_find_tracks_with_their_audience(trained):
    place, result, _ = trained
    full = listen_matrix(place.listens.listener, place.listens.row, (150, 90))
    task = matching_task(full, np.flatnonzero(place.split == TEST), np.arange(60), MatchingProtocol(cuts=(10,)))
    found = evaluate_matching({"bcl": inner_product(result.vectors), "random": random_matching()}, task)
    assert found.method("bcl").figures["N@10"].value > 1.6 * found.chance["N@10"]
    assert found.difference("bcl", "random", "R@10").low > 0
    assert result.score > 0.25
    assert 60 * 10 < result.pairs <= 60 * 20
    assert result.anchors == 60


def test_the_score_is_the_recall_of_a_loop_however_the_queries_are_cut(trained, monkeypatch):
    place, result, _ = trained
    listens, train_rows = listen_matrix(place.listens.listener, place.listens.row, (150, 90)), np.arange(60)
    queries = np.array([89, *range(60, 75)])
    truth = item_cf(listens, queries, train_rows, top=7, min_common=9)  # some have less than seven, some none
    recalls = []
    for q, query in enumerate(queries):
        if near := set(truth.of(q).tolist()):
            best = np.argsort(-(result.vectors[train_rows] @ result.vectors[query]))[:10]
            recalls.append(len(near & set(best.tolist())) / len(near))
    asked = Validation.of(queries, train_rows, truth)
    assert 0 < len(recalls) == len(asked.queries) < len(queries)
    assert asked.recall(result.vectors, 10) == pytest.approx(np.mean(recalls))
    monkeypatch.setattr("training.evaluation.metrics._BLOCK", 130)  # two queries at once
    assert asked.recall(result.vectors, 10) == pytest.approx(np.mean(recalls))
    few = Validation.of(queries, train_rows, truth, most=4)
    assert few.queries.tolist() == asked.queries[[n * len(recalls) // 4 for n in range(4)]].tolist()
    assert few.recall(result.vectors, 10) == pytest.approx(np.mean([recalls[n * len(recalls) // 4] for n in range(4)]))


def test_a_large_catalogue_is_validated_in_little_memory():
    """A truth of [Q, C] would be 2 GB here, its scores 8."""
    queries, candidates = np.arange(40_000), np.arange(40_000, 90_000)
    truth = Neighbours(np.arange(40_001), candidates[np.arange(40_000)], np.ones(40_000))
    vectors = np.random.default_rng(0).standard_normal((90_000, 2)).astype(np.float32)
    tracemalloc.start()
    asked = Validation.of(queries, candidates, truth, most=200)
    score = asked.recall(vectors, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(asked.queries) == 200
    assert 0 <= score < 0.05
    assert peak < 400e6


def test_the_checkpoint_gives_the_same_vectors(trained):
    place, result, directory = trained
    assert sorted(p.name for p in directory.iterdir()) == [
        "README.md",
        "config.json",
        "fields.json",
        "model.safetensors",
    ]
    assert [p.name for p in directory.parent.iterdir()] == ["bcl"]
    loaded = load_bcl(directory)
    assert not loaded.training
    assert loaded.config == result.model.config
    found = bcl_vectors(loaded, place.tracks, place.vectors, batch=7)
    assert found == pytest.approx(result.matching, abs=1e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(90), abs=1e-5)
    card = (directory / "README.md").read_text()
    assert f"{result.score:.4f}" in card
    assert f"{result.pairs:,} ItemCF pairs of 60 anchor tracks" in card


def test_the_same_seed_gives_the_same_bits_and_leaves_the_random_state_alone(trained, tmp_path):
    place, result, directory = trained
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    again = train(place, tmp_path / "again")
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert (tmp_path / "again/model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert np.array_equal(again.vectors, result.vectors)
    other = train(place, tmp_path / "other", replace(CONFIG, loop=replace(CONFIG.loop, seed=2)))
    assert not np.array_equal(other.vectors, result.vectors)


def test_the_listens_of_test_tracks_are_not_read(trained, tmp_path):
    place, result, _ = trained
    known = place.split[place.listens.row] != TEST
    less = Listens(place.listens.listener_ids, place.listens.listener[known], place.listens.row[known])
    found = train(replace(place, listens=less), tmp_path / "less")
    assert np.array_equal(found.vectors, result.vectors)


def test_columns_that_are_named_are_fields_or_said_not_to_be(tmp_path):
    place, said = world(), io.StringIO()
    tracks = [replace(t, album=f"album {n // 3}", isrc="X") for n, t in enumerate(place.tracks)]
    short = replace(CONFIG, loop=replace(CONFIG.loop, epochs=1))
    train_bcl(
        tracks, place.vectors, place.listens, place.split, tmp_path, short, Progress(said),
        further=("album", "isrc", "artist", "mood"),
    )  # fmt: skip
    assert [spec.name for spec in load_bcl(tmp_path).fields.of("categorical")] == ["artist", "language", "album"]
    assert "bcl: isrc, mood left out" in said.getvalue()


def test_nothing_of_a_test_track_changes_what_is_learnt(trained, tmp_path):
    """Neither its listens nor its content: vocabularies, scales, pairs and views are of the others."""
    place, _, directory = trained
    test = np.flatnonzero(place.split == TEST)
    tracks, audio = list(place.tracks), place.vectors["audio"].copy()
    for row in test:
        tracks[row] = Track(f"t{row}", artist="artist 1", language="xx", genres=("new",), attributes={"odd": "x"})
    audio[test] = np.random.default_rng(1).standard_normal((len(test), 32))
    train(replace(place, tracks=tracks, vectors={"audio": audio}), tmp_path / "other")
    changed, same = load_bcl(tmp_path / "other"), load_bcl(directory)
    assert changed.fields == same.fields
    learnt = same.state_dict()
    assert all(torch.equal(found, learnt[name]) for name, found in changed.state_dict().items())


def test_the_listens_of_validation_tracks_supervise_nothing(trained):
    place, _, _ = trained
    known = place.split[place.listens.row] == TRAIN
    less = Listens(place.listens.listener_ids, place.listens.listener[known], place.listens.row[known])
    (pairs, validation), (expected, none) = (_supervision(x, place.split, CONFIG) for x in (place.listens, less))
    assert validation is not None
    assert none is None
    assert np.array_equal(pairs.neighbours.rows, expected.neighbours.rows)
    assert np.array_equal(pairs.share, expected.share)
    known = place.split[place.listens.row] != TEST
    without = Listens(place.listens.listener_ids, place.listens.listener[known], place.listens.row[known])
    same = _supervision(without, place.split, CONFIG)[1]
    assert same is not None
    assert np.array_equal(same.truth.rows, validation.truth.rows)
    assert np.array_equal(same.truth.scores, validation.truth.scores)


def test_the_supervision_is_the_one_that_was_asked_for(trained):
    place, _, _ = trained
    asked = replace(CONFIG, anchor_power=0.75, neighbours=7, min_common=3, least=0.02, pairs="swing", swing_alpha=4.0)
    pairs, _ = _supervision(place.listens, place.split, asked)
    listens = listen_matrix(place.listens.listener, place.listens.row, (150, 90), place.split == TRAIN)
    expected = item_pairs(listens, np.arange(60), top=7, min_common=3, power=0.75, least=0.02, pairs="swing", alpha=4.0)
    assert np.array_equal(pairs.share, expected.share)
    assert np.array_equal(pairs.neighbours.scores, expected.neighbours.scores)
    uniform = _supervision(place.listens, place.split, replace(asked, anchor_power=0.0))[0].share
    assert uniform == pytest.approx(np.full(len(uniform), 1 / len(uniform)))


def test_a_step_depends_on_weights_and_batch_alone(trained):
    place, result, _ = trained
    inputs = {n: torch.from_numpy(a) for n, a in result.model.fields.transform(place.tracks, place.vectors).items()}
    task = BclTask(result.model, inputs, None, None, torch.device("cpu"))
    first, second = (list(task.batches(3)) for _ in range(2))
    assert len(first) == task.steps(3) == 6
    assert all(np.array_equal(a.items, b.items) and a.seed == b.seed for a, b in zip(first, second, strict=True))
    torch.rand(11)
    with torch.no_grad():
        assert task.loss(first[0])[0].item() == task.loss(second[0])[0].item()


def test_content_alone_trains_without_listens_and_says_so(tmp_path):
    place = world()
    said = io.StringIO()
    alone = replace(place, listens=None)
    found = train(alone, tmp_path / "a", replace(CONFIG, contrastive_weight=0.0), Progress(said))
    assert "only the contrastive loss trains" in said.getvalue()
    assert "the last epoch is kept" in said.getvalue()
    assert (found.score, found.pairs, found.fit.best_epoch) == (None, 0, CONFIG.loop.epochs - 1)
    assert found.fit.history[-1]["nt_xent"] < found.fit.history[0]["nt_xent"]
    assert "not measured" in (tmp_path / "a/README.md").read_text()


def test_without_a_validation_truth_the_last_epoch_is_kept(tmp_path):
    place = world()
    split = np.where(place.split == VALID, TEST, place.split).astype(np.int8)
    found = train(replace(place, split=split), tmp_path / "b")
    assert found.score is None
    assert found.pairs > 0
    assert found.fit.best_epoch == CONFIG.loop.epochs - 1


def test_bootstrapping_moves_the_correlation_and_alpha_one_does_not(trained, tmp_path):
    place, result, _ = trained
    assert result.correlation.shape == (7, 7)  # artist, language, genres, four blocks of audio
    assert np.diag(result.correlation) == pytest.approx(np.ones(7))
    fields = choose_fields(place.tracks, place.vectors, CONFIG)
    assert [spec.name for spec in fields.fields] == ["artist", "language", "genres", "audio"]
    static = train(place, tmp_path / "static", replace(CONFIG, correlation_alpha=1.0))
    assert not np.allclose(static.correlation, result.correlation)
    changed = replace(CONFIG, correlation_alpha=1.0, loop=replace(CONFIG.loop, epochs=1))
    assert np.array_equal(train(place, tmp_path / "one", changed).correlation, static.correlation)


@pytest.mark.parametrize(
    "change", [{"contrastive_weight": 0.0}, {"random_groups": True}, {"grouping_temperature": 0.0}]
)
def test_ablations_run(change, tmp_path):
    short = replace(CONFIG, loop=replace(CONFIG.loop, epochs=1), **change)
    found = train(world(), tmp_path / "x", short)
    assert np.isfinite(found.vectors).all()
    assert ("nt_xent" in found.fit.history[0]) == (change != {"contrastive_weight": 0.0})


def test_too_little_to_learn_from_is_said(tmp_path):
    place = world()
    for learnt in ([], [TRAIN, TRAIN, VALID], [VALID] * 5):
        split = np.array(learnt + [TEST] * (90 - len(learnt)), np.int8)
        with pytest.raises(BclError, match=f"4 tracks in train and valid.* got {len(learnt)} and"):
            train(replace(place, split=split), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_tracks_of_which_nothing_is_known_are_not_told_apart():
    inputs = {
        "categorical": torch.tensor([[1, 0], [1, 2], [0, 0], [0, 0], [3, 1], [1, 1]]),
        "multi": torch.tensor([[[2, 0]], [[0, 0]], [[5, 1]], [[0, 0]], [[0, 0]], [[1, 0]]]),
        "dense_known": torch.tensor([[0.0], [0.0], [1.0], [0.0], [0.0], [1.0]]),
        "dense": torch.zeros(6, 1, 4),
    }
    assert told_apart(inputs, np.arange(6)).tolist() == [0, 1, 2, 4, 5]
    assert told_apart(inputs, np.array([0, 1, 2, 3])).tolist() == [0, 1, 2, 3]  # three are too few


def test_the_softmax_trains_from_end_to_end(tmp_path):
    place = world()
    found = train(place, tmp_path / "x", replace(CONFIG, supervised="softmax", pool=40))
    assert found.score > 0.25
    assert found.fit.history[-1]["softmax"] < found.fit.history[0]["softmax"]
    assert load_bcl(tmp_path / "x").config.supervised == "softmax"


def test_one_field_is_learned_from_listens_or_not_at_all(tmp_path):
    place = world()
    short = replace(CONFIG, fields=(FieldSpec("language", "categorical", "language"),), loop=LoopConfig(epochs=1))
    found = train(place, tmp_path / "one", short)
    assert "nt_xent" not in found.fit.history[0]
    assert found.model.config.contrastive_weight == 0
    with pytest.raises(BclError, match="nothing to learn from"):
        train(replace(place, listens=None), tmp_path / "none", short)


def test_broken_checkpoints_are_named(trained, tmp_path):
    _, _, directory = trained
    with pytest.raises(BclError) as caught:
        load_bcl(tmp_path / "nothing")
    assert caught.value.code == "bcl_missing"
    copy = tmp_path / "copy"
    for name, spoil in {
        "config.json": lambda b: json.dumps({**json.loads(b), "dims": 17}).encode(),
        "fields.json": lambda b: b[:20],
        "model.safetensors": lambda b: b[:100],
    }.items():
        copy.mkdir(exist_ok=True)
        for path in directory.iterdir():
            (copy / path.name).write_bytes(spoil(path.read_bytes()) if path.name == name else path.read_bytes())
        with pytest.raises(BclError):
            load_bcl(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BclError, match="no whole BCL checkpoint"):
        load_bcl(copy)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "folder"
    replace_folder(target, lambda folder: (folder / "a").write_text("1"))
    replace_folder(target, lambda folder: (folder / "b").write_text("2"))
    assert [p.name for p in target.iterdir()] == ["b"]

    def fail(folder):
        (folder / "c").write_text("3")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        replace_folder(target, fail)
    assert [p.name for p in target.parent.iterdir()] == ["folder"]
    assert [p.name for p in target.iterdir()] == ["b"]


@pytest.mark.parametrize("changes", [{}, {"supervised": "softmax", "pairs": "swing"}], ids=["bpr", "softmax"])
def test_a_training_broken_off_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config, follow = replace(CONFIG, dropout=0.2, **changes), BclTask.after_step
    place = world()
    data = (place.tracks, place.vectors, place.listens, place.split)
    expected = train_bcl(*data, tmp_path / "whole", config, Silent())
    for dies_after in (8, 9):  # in the second epoch, then again in the third
        done = [0]

        def after_step(task: BclTask, done: list[int] = done, last: int = dies_after) -> None:
            if done[0] == last:
                raise KeyboardInterrupt
            done[0] += 1
            follow(task)

        monkeypatch.setattr(BclTask, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            train_bcl(*data, tmp_path / "broken", config, Silent(), saves=tmp_path / "saves", save_every_s=0.0)
    monkeypatch.setattr(BclTask, "after_step", follow)
    with pytest.raises(SavesError, match="unfinished training with other settings"):
        train_bcl(*data, tmp_path / "broken", replace(config, dims=8), Silent(), saves=tmp_path / "saves")
    board = tmp_path / "board"
    found = train_bcl(*data, tmp_path / "broken", config, Silent(), saves=tmp_path / "saves", board=board)
    assert found.fit == expected.fit
    assert np.array_equal(found.vectors, expected.vectors)
    assert np.array_equal(found.correlation, expected.correlation)
    weights = "model.safetensors"
    assert (tmp_path / "broken" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert not (tmp_path / "saves").exists()
    assert [*board.iterdir()]


def test_the_card_names_the_similarity(tmp_path: Path) -> None:
    config = replace(CONFIG, pairs="swing", loop=replace(CONFIG.loop, epochs=1))
    train(world(), tmp_path, config)
    assert " Swing pairs of " in (tmp_path / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match="pairs is one of itemcf, swing, not 'cosine'"):
        replace(CONFIG, pairs="cosine")
