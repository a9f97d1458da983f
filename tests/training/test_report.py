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
from training.larp.content import joined
from training.progress import Progress, Silent
from training.report.report import Scope, write_report
from training.report.variants import FULL, PLAIN, RAW, UNTRAINED, Study

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
    assert found[PLAIN].history[:2] == found[FULL].history[:2] == found["J = 1"].history[:2]
    assert not np.array_equal(found["J = 1"].joined, found["LARP-TTC"].joined)
    for variant in found.values():
        lengths = np.linalg.norm(variant.vectors["audio"], axis=1)
        assert np.allclose(lengths, 1, atol=1e-3)
    full = found[FULL]
    assert np.array_equal(full.joined, joined(full.vectors["audio"], full.vectors["text"], full.share))


def test_other_settings_are_another_study(study: Study, tmp_path: Path) -> None:
    study.ablation(SCOPE.seeds)
    other = replace(study, config=replace(SHORT, temperature=0.2))
    assert other._known([FULL]) is None
    assert study._known([FULL]) is not None


def test_a_swept_setting_trains_anew(study: Study) -> None:
    found = study.changed("temperature = 0.2", {"temperature": 0.2})
    assert len(found.history) == 3
    assert not np.array_equal(found.joined, study.ablation(SCOPE.seeds)[FULL].joined)
