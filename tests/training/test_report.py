"""The report of the small data set: every table and picture, trained once, and again without training."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from larp_small import TINY

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.evaluation.continuation import ContinuationProtocol
from training.larp.config import SettingsError, StageConfig
from training.larp.content import joined
from training.progress import Progress, Silent
from training.report.page import finish
from training.report.report import Report, Scope, write_report
from training.report.variants import FULL, PLAIN, RAW, UNTRAINED, Study, Variant

SHORT = replace(TINY, freeze=True, stages=tuple(replace(stage, epochs=1) for stage in TINY.stages))
SCOPE = Scope(ContinuationProtocol(cuts=(3,)), seeds=(1, 2), recommenders=False)


@pytest.fixture(scope="module")
def study(dataset: DataSet, clips: ClipCache, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(dataset, clips, SHORT, tmp_path_factory.mktemp("study") / "report", Silent())


@pytest.fixture(scope="module")
def written(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("out"), SCOPE, [study], Silent())


def test_all_tables_and_pictures_are_there(written: Path) -> None:
    text = written.read_text("utf-8")
    for heading in ("Table 3", "Table 2", "Table 4", "Figure 3", "Figure 4", "Figure 5", "homogeneity", "random pairs"):
        assert heading in text
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 5
    for picture in pictures:
        assert (written.parent / picture).read_bytes()[:4] == b"\x89PNG"
    numbers = json.loads((written.parent / "figures.json").read_text("utf-8"))
    assert {RAW, UNTRAINED, "LARP-WTC", "LARP-TTC", PLAIN, FULL} - {RAW} <= numbers["table 3"]["methods"].keys()
    assert list(numbers["figure 4"]["methods"]) == ["J = 1", "J = 2"]


def test_what_is_trained_is_kept(study: Study, written: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    again = replace(study, progress=Progress(said, interval_s=0))
    second = write_report(again, tmp_path, SCOPE, [again], again.progress)
    assert second.read_bytes() == written.read_bytes()
    assert "LARP stage" not in said.getvalue()


def test_variants_part_at_the_last_stage_alone(study: Study) -> None:
    found = study.ablation(SCOPE.seeds)
    assert {variant.score_name for name, variant in found.items() if name != RAW} == {"R@10"}
    assert found[PLAIN].history[:2] == found[FULL].history[:2] == found["J = 1"].history[:2]
    assert not np.array_equal(found["J = 1"].joined, found["LARP-TTC"].joined)
    for variant in found.values():
        lengths = np.linalg.norm(variant.vectors["audio"], axis=1)
        assert np.allclose(lengths, 1, atol=1e-3)
    full = found[FULL]
    assert np.array_equal(full.joined, joined(full.vectors["audio"], full.vectors["text"], full.share))


@pytest.mark.parametrize(("heard", "score_name"), [(False, ""), (True, "R@10")])
def test_pictures_of_what_there_is_alone(study: Study, tmp_path: Path, heard: bool, score_name: str) -> None:
    """No test track has audio, no validation scored the epochs: what would show them is left out, not made up."""
    rng, count = np.random.default_rng(0), len(study.dataset.tracks)
    vectors = {tower: rng.normal(size=(count, 8)).astype(np.float32) for tower in ("audio", "text")}
    vectors |= {tower: rows / np.linalg.norm(rows, axis=1, keepdims=True) for tower, rows in vectors.items()}
    if not heard:
        vectors["audio"][:] = np.nan
    history = [("wtc", 0, 1.0), ("wtc", 1, 2.0)]
    report = Report(study, tmp_path, SCOPE)
    names = (UNTRAINED, "LARP-WTC", FULL)
    report._pictures({name: Variant(name, vectors, 0.5, history, score_name) for name in names})
    text = "\n".join(report.text)
    assert "Figure 3" in text
    assert ("t-SNE" in text) == (tmp_path / "modalities.png").exists() == heard
    assert ("Figure 5" in text) == (tmp_path / "figure-5.png").exists() == bool(score_name)


def test_no_vector_in_any_test_playlist_is_said_and_nothing_is_drawn(study: Study, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(len(study.dataset.tracks), 8)).astype(np.float32)
    report = Report(study, tmp_path, SCOPE)
    rows[np.concatenate([np.concatenate([query.seeds, query.truth]) for query in report.queries])] = np.nan
    report._pictures({name: Variant(name, {"text": rows}, 0.5) for name in (UNTRAINED, FULL)})
    text = "\n".join(report.text)
    assert "Not drawn: no test playlist has a track with a vector." in text
    assert "Not drawn: no two tracks of a test playlist have vectors." in text
    assert not list(tmp_path.iterdir())


def test_a_broken_write_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finish(tmp_path, ["# First"], {"a": 1})
    assert path.read_text("utf-8") == "# First\n"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.folders.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, ["# Second"], {"a": 2})
    assert path.read_text("utf-8") == "# First\n"
    assert json.loads((tmp_path / "figures.json").read_text("utf-8")) == {"a": 1}


def test_other_stages_than_the_papers_are_refused_before_any_training(study: Study) -> None:
    single = replace(study, config=replace(SHORT, towers=("text",), stages=(StageConfig(("ttc",), epochs=1),)))
    with pytest.raises(SettingsError, match="three stages, and these settings have TTC"):
        single.ablation()


def test_other_settings_are_another_study(study: Study, tmp_path: Path) -> None:
    study.ablation(SCOPE.seeds)
    other = replace(study, config=replace(SHORT, temperature=0.2))
    assert other._known([FULL]) is None
    assert study._known([FULL]) is not None


def test_a_swept_setting_trains_anew(study: Study) -> None:
    found = study.changed("temperature = 0.2", {"temperature": 0.2})
    assert len(found.history) == 3
    assert not np.array_equal(found.joined, study.ablation(SCOPE.seeds)[FULL].joined)
