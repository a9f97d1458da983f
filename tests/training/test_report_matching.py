"""The report of BCL, of a catalogue that is not music: every table and picture, trained once, and again without."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_not_music import FIELDS, write_recipes
from typer.testing import CliRunner

from training.__main__ import app
from training.bcl.config import PRESETS, BclConfig, bcl_preset
from training.data.dataset import TEST, DataSet
from training.evaluation.results import EvaluationError
from training.progress import Progress, Silent
from training.report import matching_report
from training.report.matching_report import MatchingScope, write_matching_report
from training.report.matching_study import FULL, MatchingStudy, compare, mean_of, variants


def config() -> BclConfig:
    found = bcl_preset("small", hidden=(16,), steps=3, batch=64, pool=64, items=64)
    return replace(found, loop=replace(found.loop, epochs=1))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes")
    write_recipes(root)
    return root


@pytest.fixture(scope="module")
def study(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> MatchingStudy:
    folder = tmp_path_factory.mktemp("study") / "report-bcl"
    return MatchingStudy(DataSet.open(recipes, attributes=FIELDS), {}, config(), folder, Silent())


@pytest.fixture(scope="module")
def written(study: MatchingStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching_report, "SWEEPS", {"correlation_alpha": (0.5, 0.9), "correlation_every": (1, 20)})
        return write_matching_report(study, tmp_path_factory.mktemp("out"), MatchingScope(2, sweeps=True), Silent())


def test_every_table_and_picture_is_there(study: MatchingStudy, written: Path) -> None:
    text = written.read_text("utf-8")
    for heading in ("Ablation", "Ablation, with the popularity prior", "By the query's listeners", "Sweeps"):
        assert f"## {heading}\n" in text
    assert {"R@50 in", "N@50 in", "R@50 by listeners", "N@50 by listeners"} <= {
        line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()
    }
    for picture in ("popularity.png", "sweeps.png"):
        assert f"({picture})" in text
        assert (written.parent / picture).read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in written.parent.iterdir()} == {
        *("README.md", "figures.json", "popularity.png", "sweeps.png")
    }
    numbers = json.loads((written.parent / "figures.json").read_text("utf-8"))
    names = {"popularity", "TF-IDF of attributes", *variants(study.config)}
    assert numbers["ablation"]["methods"].keys() == names
    assert numbers["ablation"]["minus full"].keys() == names - {FULL}
    assert numbers["sweeps"]["correlation_alpha"]["0.9"]["value"] == 0  # the settings' own
    assert numbers["ablation"]["sd over seeds"].keys() == variants(study.config).keys()


def test_a_figure_is_the_mean_over_seeds_and_a_difference_is_taken_query_by_query(
    study: MatchingStudy, written: Path
) -> None:
    numbers = json.loads((written.parent / "figures.json").read_text("utf-8"))["ablation"]
    runs = {name: study.runs(name, its, 2) for name, its in variants(study.config).items()}
    assert runs[FULL][0]["R@50"].tolist() != runs[FULL][1]["R@50"].tolist()
    for name, its in runs.items():
        values = np.mean([run["R@50"] for run in its], 0)
        assert numbers["methods"][name]["R@50"]["value"] == pytest.approx(values.mean(), abs=1e-6)
        if name != FULL:
            gap = values.mean() - np.mean([run["R@50"] for run in runs[FULL]])
            assert numbers["minus full"][name]["R@50"]["value"] == pytest.approx(gap, abs=1e-6)
    whole = compare({name: mean_of(its) for name, its in runs.items()}, study.tasks)
    listeners = np.bincount(study.dataset.listens.row, minlength=420)[study.dataset.track_split == TEST]
    assert sum(its.sum() for name, its in whole.parts.masks.items() if name.startswith(("tail", "head"))) == 70
    tail = next(its for name, its in whole.parts.masks.items() if name.startswith("tail"))
    assert listeners[tail].max() < listeners[~tail].min()


def test_what_is_trained_is_kept_and_other_settings_are_trained_anew(
    study: MatchingStudy, written: Path, tmp_path: Path
) -> None:
    said = io.StringIO()
    again = replace(study, progress=Progress(said, interval_s=0))
    write_matching_report(again, tmp_path, MatchingScope(2), again.progress)
    assert said.getvalue().count("\n") == 1  # where the report is
    assert (tmp_path / "popularity.png").read_bytes() == (written.parent / "popularity.png").read_bytes()
    other = replace(study, config=replace(study.config, dims=64))
    assert other._key(other.config) != study._key(study.config)
    vectors = {"text": np.zeros((420, 4), np.float32)}
    assert replace(study, vectors=vectors)._key(study.config) != study._key(study.config)


def test_each_variant_is_one_change_and_none_stands_twice() -> None:
    for preset in PRESETS.values():
        found = variants(preset)
        assert found.pop(FULL) == preset
        assert len({its.to_json() for its in found.values()} - {preset.to_json()}) == len(found)
        assert found["no contrast"] == replace(preset, contrastive_weight=0.0)
        assert ("BPR only" in found) == (preset.supervised != "bpr")  # else it is what has no contrast


def test_vectors_of_towers_are_read_and_stand_as_a_baseline(study: MatchingStudy, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {"text": rng.normal(size=(420, 32)), "lyrics": np.full((420, 32), np.nan)}
    vectors = {name: rows.astype(np.float32) for name, rows in vectors.items()}
    vectors["text"][::5] = np.nan
    given = replace(study, vectors=vectors, folder=tmp_path / "kept")
    text = write_matching_report(given, tmp_path / "out", MatchingScope(1), Silent()).read_text("utf-8")
    assert "content kNN (text)" in text
    assert "sd over seeds" in text


def test_without_listens_nothing_is_trained(study: MatchingStudy, tmp_path: Path) -> None:
    silent = replace(study, dataset=replace(study.dataset, listens=None), folder=tmp_path / "kept")
    with pytest.raises(EvaluationError, match=r"no listens\.parquet"):
        write_matching_report(silent, tmp_path / "out", MatchingScope(1), Silent())
    assert not silent.folder.exists()


def test_one_field_has_no_two_views(recipes: Path, tmp_path: Path) -> None:
    study = MatchingStudy(DataSet.open(recipes, attributes=("cuisine",)), {}, config(), tmp_path / "kept", Silent())
    with pytest.raises(EvaluationError, match=r"one field \(cuisine\)"):
        write_matching_report(study, tmp_path / "out", MatchingScope(1), Silent())


def test_no_validation_truth_means_no_prior(study: MatchingStudy, tmp_path: Path) -> None:
    split = study.dataset.track_split.copy()
    split[split == 1] = 0
    bare = replace(study, dataset=replace(study.dataset, track_split=split), folder=tmp_path / "kept")
    text = write_matching_report(bare, tmp_path / "out", MatchingScope(1), Silent()).read_text("utf-8")
    assert "there is no popularity prior" in text
    assert "## Ablation, with" not in text


def test_the_command_line_reads_the_attributes_alone_without_towers(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "small", config())
    words = ["report-bcl", str(recipes), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*words, "--fields", "cuisine,ingredients", "--seeds", "1", "--pairs", "swing"])
    assert done.exception is None, done.exception
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "pairs by swing" in text
    assert "2 embedded fields: of so few there is little to group" in text
    assert "Read besides attributes: nothing. 1 seed;" in text
