"""A LARP training that is broken off goes on to the same bits, wherever it was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from larp_small import TINY, stages_of

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.config import LarpConfig
from training.larp.pretraining import Pretraining
from training.larp.result import LarpResult
from training.larp.task import LarpTask
from training.larp.training import Run, train_larp
from training.progress import Silent
from training.saves import Saves, SavesError

FILES = ("model.safetensors", "config.json", "tokenizer.json", "README.md")
STEPS = {1: 6, 2: 10, 3: 10}  # 17 tracks in batches of 8, or of 4 and their partners; two epochs a stage


class Killed(BaseException):
    """As a signal would end the process: nothing is tidied up."""


Train = Callable[..., LarpResult]


@pytest.fixture
def train(dataset: DataSet, clips: ClipCache) -> Train:
    """Train in a folder, saving after every `every_s` seconds; die after so many steps."""

    def run(
        folder: Path, config: LarpConfig = TINY, dies_after: int = -1, every_s: float = 0.0, **changes: Any
    ) -> LarpResult:
        steps = 0

        def after_step(task: LarpTask) -> None:
            nonlocal steps
            if steps == dies_after:
                raise Killed
            steps += 1
            follow(task)

        follow = LarpTask.after_step
        surroundings = Run(folder / "larp", folder / "saves", folder / "features", save_every_s=every_s, **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LarpTask, "after_step", after_step)
            return train_larp(dataset, clips, surroundings, config, Silent())

    return run


@pytest.fixture(scope="module")
def unbroken(dataset: DataSet, clips: ClipCache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LarpResult]:
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, train_larp(dataset, clips, Run(folder), TINY, Silent())


def assert_same(found: Path, expected: Path) -> None:
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize(
    ("dies_after", "every_s"),
    [(2, 0.0), (8, 1e9), (19, 0.0), (25, 1e9)],
    ids=["in 1", "in 2, of which nothing is saved", "in 3", "in the last step"],
)
def test_a_training_broken_off_ends_as_if_it_had_not_been(
    train: Train, unbroken: tuple[Path, LarpResult], tmp_path: Path, dies_after: int, every_s: float
) -> None:
    assert sum(STEPS.values()) == 26
    with pytest.raises(Killed):
        train(tmp_path, dies_after=dies_after, every_s=every_s)
    assert not (tmp_path / "larp").exists()
    result = train(tmp_path, every_s=every_s)
    assert_same(tmp_path / "larp", unbroken[0])
    assert result == unbroken[1]
    assert [path.name for path in tmp_path.iterdir()] == ["larp"]  # the saves have gone


def test_no_step_is_done_twice(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        train(tmp_path, dies_after=20)
    filled: list[int] = []
    monkeypatch.setattr("training.larp.training.fill_tables", lambda *_: filled.append(1))
    with pytest.raises(Killed):
        train(tmp_path, dies_after=3)  # 20 + 3 are done
    position = Saves(tmp_path / "saves", made_from_of(tmp_path)).position
    assert position is not None
    assert (position.task[:15], position.step) == ("LARP stage 3/3 ", 23 - STEPS[1] - STEPS[2])
    assert filled == []  # the tables are those of the save


def made_from_of(folder: Path) -> dict[str, str]:
    facts: dict[str, str] = json.loads((folder / "saves/progress.json").read_text())["made_from"]
    return facts


@pytest.mark.parametrize(
    "changes",
    [{"freeze": True}, {"towers": ("text",)}, {"audio_share": None, "fusion": "transformer", "distill": 0.3}],
    ids=["frozen", "text", "others"],
)
def test_so_does_one_of_other_settings(train: Train, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = stages_of(replace(TINY, **changes), 1, 2, 3)
    expected = train(tmp_path / "whole", config)
    for dies_after in (2, 5):  # in the first of these stages, then in the second
        with pytest.raises(Killed):
            train(tmp_path / "broken", config, dies_after=dies_after)
    assert train(tmp_path / "broken", config) == expected
    assert_same(tmp_path / "broken/larp", tmp_path / "whole/larp")


def test_a_stage_of_long_ago_is_not_told_again(train: Train, tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(Killed):
        train(tmp_path, dies_after=8, after_stage=lambda name, *_: heard.append(name))
    assert heard == ["untrained", "wtc"]
    heard.clear()
    train(tmp_path, after_stage=lambda name, *_: heard.append(name))
    assert heard == ["untrained", "wtc+ttc", "wtc+ttc+tpc"]


def test_another_training_is_refused_by_what_differs(
    train: Train, dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, dies_after=2)
    with pytest.raises(SavesError, match="with other settings: go on with the same, or give --fresh"):
        train(tmp_path, replace(TINY, queue=25))
    run = Run(tmp_path / "larp", tmp_path / "saves")
    with pytest.raises(SavesError, match="with other data:"):
        train_larp(replace(dataset, fingerprint="of other tracks"), clips, run, TINY, Silent())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "fingerprint", "of other sound")
        with pytest.raises(SavesError, match="with other audio:"):
            train_larp(dataset, clips, run, TINY, Silent())


def test_a_kill_between_the_renames_of_a_save_loses_nothing(
    train: Train, unbroken: tuple[Path, LarpResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, dies_after=9)
    os.rename(tmp_path / "saves", tmp_path / "saves.replaced")
    began: list[bool] = []
    fill = Pretraining.keys
    monkeypatch.setattr(Pretraining, "keys", lambda *args: (began.append(True), fill(*args))[1])
    train(tmp_path)
    assert len(began) == 26 - 9
    assert_same(tmp_path / "larp", unbroken[0])
    assert [path.name for path in tmp_path.iterdir()] == ["larp"]


CHILD = """
import sys
from pathlib import Path
from larp_small import TINY
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.training import Run, train_larp
from training.progress import Silent

data, clips, folder = map(Path, sys.argv[1:])
dataset = DataSet.open(data)
cache = ClipCache.build(dataset, clips, Silent())
train_larp(dataset, cache, Run(folder / "larp", folder / "saves", save_every_s=0.0), TINY, Silent())
"""


def start(small_data: Path, clip_folder: Path, folder: Path) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", CHILD, small_data, clip_folder, folder], env=environment)


def wait_for(process: subprocess.Popen[bytes], there: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not there():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.usefixtures("clips")
def test_a_process_killed_at_random_goes_on_to_the_same_bits(
    unbroken: tuple[Path, LarpResult], small_data: Path, clip_folder: Path, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    delays = random.Random(seed)
    note = tmp_path / "saves" / "progress.json"
    stage = delays.randint(1, 3)

    def saved() -> bool:
        try:
            return f'"position": {{"task": "LARP stage {stage}/3' in note.read_text()
        except FileNotFoundError:
            return False

    process = start(small_data, clip_folder, tmp_path)
    wait_for(process, saved)
    time.sleep(delays.uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(small_data, clip_folder, tmp_path).wait() == 0
    assert_same(tmp_path / "larp", unbroken[0])
