"""The whole way on two dozen real songs: data set -> LARP -> BCL -> figures -> release -> collection."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import SmallRun

from index.audience.cat import Audience
from index.collection import Collection
from index.models.caption import caption
from index.models.encoder import Encoder
from index.models.matcher import Matcher
from index.sound.audio import decode
from index.sound.features import log_mel
from index.sound.sketch import WIDTH
from training.bcl.config import bcl_preset
from training.data.dataset import TRAIN, DataSet
from training.pipeline import Pipeline
from training.progress import Silent
from training.saves import SavesError
from training.workspace import Workspace, WorkspaceError


def test_the_release_holds_all_but_what_was_left_out(small_run: SmallRun) -> None:
    pipeline, release, left_out = small_run.pipeline, small_run.release, small_run.left_out
    collection = Collection.open(release)
    for row, track in enumerate(pipeline.dataset.tracks):
        assert (collection.catalogue.row_of(track.track_id) is None) == (row in left_out)


def test_only_training_tracks_are_warm(small_run: SmallRun) -> None:
    pipeline, release, left_out = small_run.pipeline, small_run.release, small_run.left_out
    catalogue = Collection.open(release).catalogue
    for row, track in enumerate(pipeline.dataset.tracks):
        if row not in left_out:
            assert catalogue.is_cold(catalogue.row_of(track.track_id)) == (pipeline.dataset.track_split[row] != TRAIN)


def test_audiences_know_nothing_of_cold_tracks(small_run: SmallRun) -> None:
    pipeline, release = small_run.pipeline, small_run.release
    listens = pipeline.dataset.listens
    trained = (pipeline.dataset.track_split[listens.row] == TRAIN).sum()
    rows = np.load(release.file("audience/rows.npy"), allow_pickle=False)
    assert len(rows) == trained
    assert Audience.open(release) is not None


def test_stored_vectors_are_what_the_service_would_compute(small_run: SmallRun) -> None:
    pipeline, release = small_run.pipeline, small_run.release
    encoder, matcher, collection = (
        Encoder.open(release.path / "encoder"),
        Matcher.open(release.path / "matcher"),
        Collection.open(release),
    )
    for row in (0, 7, len(pipeline.dataset.tracks) - 1):
        track, path = pipeline.dataset.tracks[row], pipeline.dataset.audio_path(row)
        fresh = encoder.track(log_mel(decode(path).clips), caption(track, encoder.clauses), track.lyrics)
        parts = {
            name: getattr(fresh, name)[None] for name in ("audio", "text", "lyrics") if getattr(fresh, name) is not None
        }
        parts.setdefault("lyrics", np.full((1, encoder.dims), np.nan, np.float32))
        matching = matcher.vectors([track], parts)[0]
        stored = collection.catalogue.row_of(track.track_id)
        np.testing.assert_allclose(collection.continuation.vectors([stored])[0], fresh.continuation, atol=1e-5)
        np.testing.assert_allclose(collection.matching.vectors([stored])[0], matching, atol=1e-4)
        drawn = np.full(WIDTH, np.nan, np.float32) if fresh.sketch is None else fresh.sketch
        np.testing.assert_array_equal(collection.view().space("sketch").vectors([stored])[0], drawn)


def test_the_manifest_carries_the_figures(small_run: SmallRun) -> None:
    pipeline, release, left_out = small_run.pipeline, small_run.release, small_run.left_out
    figures = release.manifest.facts["evaluation"]
    assert figures == json.loads((pipeline.workspace.evaluation / "figures.json").read_text())
    assert {"continuation", "matching", "audience"} <= set(figures)
    recall = figures["continuation"]["methods"]["same artist"]["R@10"]
    assert 0 <= recall["low"] <= recall["value"] <= recall["high"] <= 1
    assert release.manifest.counts["tracks"] == len(pipeline.dataset.tracks) - len(left_out)


def test_a_step_asked_for_too_early_names_the_step_before(small_data: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(DataSet.open(small_data), Workspace(tmp_path), Silent())
    with pytest.raises(WorkspaceError, match="python -m training larp"):
        pipeline.train_bcl(bcl_preset("demo"))
    with pytest.raises(WorkspaceError, match="python -m training larp"):
        pipeline.publish(tmp_path / "releases")


def test_results_of_another_data_set_or_other_towers_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    pipeline = small_run.pipeline
    other = replace(pipeline, dataset=replace(pipeline.dataset, fingerprint="of other tracks"))
    with pytest.raises(WorkspaceError, match="python -m training larp") as caught:
        other.publish(tmp_path / "releases")
    assert caught.value.code == "step_outdated"
    copied = Workspace(tmp_path / "work")
    shutil.copytree(pipeline.workspace.root, copied.root)
    matching = copied.matching / "vectors.npy"
    np.save(matching, -np.load(matching, allow_pickle=False))
    with pytest.raises(WorkspaceError, match="python -m training evaluate"):
        replace(pipeline, workspace=copied).publish(tmp_path / "releases")
    assert not (tmp_path / "releases").exists()


def test_an_unusable_save_of_bcl_stops_the_step_until_it_is_to_begin_anew(small_run: SmallRun, tmp_path: Path) -> None:
    copied = Workspace(tmp_path / "work")
    shutil.copytree(small_run.pipeline.workspace.root, copied.root)
    pipeline, config = replace(small_run.pipeline, workspace=copied), bcl_preset("demo", seed=3)
    config = replace(config, loop=replace(config.loop, epochs=2))
    expected = (copied.bcl / "model.safetensors").read_bytes()
    copied.bcl_saves.mkdir()
    (copied.bcl_saves / "progress.json").write_text("{", "utf-8")
    with pytest.raises(SavesError, match="--fresh"):
        pipeline.train_bcl(config)
    assert (copied.bcl / "model.safetensors").read_bytes() == expected
    pipeline.train_bcl(config, fresh=True)
    assert (copied.bcl / "model.safetensors").read_bytes() == expected
    assert not copied.bcl_saves.exists()
    assert [*(copied.board / "bcl").iterdir()]
