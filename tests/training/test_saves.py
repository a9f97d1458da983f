"""Saves of an unfinished run: what they hold, whose they are, and going on from any of them to the same end."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.folders import recover_folder, remove_folder, replace_folder
from training.loop import LoopConfig, fit
from training.progress import Silent
from training.saves import FitResult, Position, Saves, SavesError

FACTS = {"settings": "a", "data": "b"}
BATCHES = 3


class Killed(BaseException):
    """As a signal would end the process: nothing is tidied up."""


class Noisy(nn.Module):
    """A regression with dropout, whose validation rises and falls; `after` is state that no parameter holds."""

    def __init__(self, name: str = "noisy", dies_at: int = -1) -> None:
        super().__init__()
        self.name = name
        self.line = nn.Linear(4, 1)
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)
        self.after, self.dies_at = 0, dies_at

    def steps(self, epoch: int) -> int:
        return BATCHES

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        for number in range(BATCHES):
            batch = torch.randn(8, 4, generator=generator)
            if number >= start:
                yield batch

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        if self.after == self.dies_at:
            raise Killed
        error = (self.line(nn.functional.dropout(batch, 0.5)) - batch.sum(1, keepdim=True)).square().mean()
        return error, {"error": error.item()}

    def after_step(self) -> None:
        self.after += 1

    def validate(self) -> float:
        return float(-abs(self.after - 6))  # the second epoch is the best

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        return {"model": {"line": super().state_dict()}, "after": self.after}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # type: ignore[override]
        super().load_state_dict(state["model"]["line"])
        self.after = state["after"]


def settings(**changes: Any) -> LoopConfig:
    return LoopConfig(**({"epochs": 4, "lr": 0.1, "precision": "fp32", "device": "cpu", "patience": 0} | changes))


def saves_of(folder: Path, every_s: float = 0.0, **facts: str) -> Saves:
    return Saves(folder, FACTS | facts, every_s)


def weights(task: Noisy) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in task.parameters()]).tolist()


# ----- going on -----


@pytest.mark.parametrize("every_s", [0.0, 1e9], ids=["each step", "each epoch"])
@pytest.mark.parametrize("dies_at", range(4 * BATCHES))
def test_a_run_broken_off_at_any_step_ends_as_if_it_had_not_been(tmp_path: Path, dies_at: int, every_s: float) -> None:
    unbroken = Noisy()
    expected = fit(unbroken, settings(), Silent())
    with pytest.raises(Killed):
        fit(Noisy(dies_at=dies_at), settings(), Silent(), saves_of(tmp_path / "saves", every_s))
    again = Noisy()
    saves = saves_of(tmp_path / "saves", every_s)
    if saves.position:
        assert saves.position.step == (dies_at if every_s == 0 else dies_at // BATCHES * BATCHES)
    else:
        assert dies_at == 0 or (dies_at < BATCHES and every_s)
    result = fit(again, settings(), Silent(), saves)
    assert result == expected
    assert result.best_epoch == 1
    assert weights(again) == weights(unbroken)
    assert again.after == unbroken.after == 6


def test_patience_counts_on_over_a_break(tmp_path: Path) -> None:
    config = settings(epochs=9, patience=2)
    unbroken = Noisy()
    expected = fit(unbroken, config, Silent())
    assert len(expected.history) == 4
    with pytest.raises(Killed):
        fit(Noisy(dies_at=10), config, Silent(), saves_of(tmp_path))
    again = Noisy()
    assert fit(again, config, Silent(), saves_of(tmp_path)) == expected
    assert weights(again) == weights(unbroken)


def test_a_finished_task_is_not_trained_again(tmp_path: Path) -> None:
    first = Noisy("first")
    expected = fit(first, settings(), Silent(), saves_of(tmp_path))
    at_border = Noisy("first", dies_at=0)  # would die if it were to train
    assert fit(at_border, settings(), Silent(), saves_of(tmp_path)) == expected
    assert weights(at_border) == weights(first)  # nothing of the second is saved yet: it starts from these

    with pytest.raises(Killed):
        fit(Noisy("second", dies_at=2), settings(), Silent(), saves_of(tmp_path))
    long_past = Noisy("first", dies_at=0)
    assert fit(long_past, settings(), Silent(), saves_of(tmp_path)) == expected
    assert saves_of(tmp_path).started("second")


# ----- what is held -----


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    saves = saves_of(tmp_path / "saves")
    state = {"model": {"a.b": torch.randn(3, 2).T, "deep": {"ids": torch.arange(4)}}, "epochs": 3, "on": True}
    saves.facts["untrained"] = 0.125
    position = Position("one", step=7, epoch=2, place=1, totals={"loss": 1 / 3})
    saves.write(
        position,
        FitResult(0.1 + 0.2, 1, [{"loss": 1e-300}]),
        task=state,
        best={},
        optimiser={0: {"step": torch.tensor(7.0)}},
    )
    again = saves_of(tmp_path / "saves")
    assert again.position == position
    assert again.results == {"one": FitResult(0.1 + 0.2, 1, [{"loss": 1e-300}])}
    assert again.facts == {"untrained": 0.125}
    found = again.load("task")
    assert torch.equal(found["model"]["a.b"], state["model"]["a.b"])
    assert torch.equal(found["model"]["deep"]["ids"], torch.arange(4))
    assert (found["epochs"], found["on"]) == (3, True)
    assert again.load("best") == {}
    assert again.load("optimiser")["0"]["step"].item() == 7
    assert {path.suffix for path in (tmp_path / "saves").iterdir()} == {".json", ".safetensors"}


def test_before_the_first_epoch_there_is_no_score(tmp_path: Path) -> None:
    saves_of(tmp_path).write(Position("one"), FitResult(), task={})
    assert saves_of(tmp_path).results["one"] == FitResult()


def test_a_save_is_due_after_its_seconds(tmp_path: Path) -> None:
    assert saves_of(tmp_path, 0.0).due()
    assert not saves_of(tmp_path, 1e6).due()


# ----- whose it is -----


@pytest.mark.parametrize(
    ("changed", "named"), [({"data": "c"}, "other data:"), ({"data": "c", "settings": "d"}, "other data and settings:")]
)
def test_a_save_of_another_training_is_refused_by_name(tmp_path: Path, changed: dict[str, str], named: str) -> None:
    saves_of(tmp_path).write(Position("one"), FitResult(), task={})
    with pytest.raises(SavesError, match=named) as caught:
        saves_of(tmp_path, **changed)
    assert caught.value.code == "save_of_another"
    assert "--fresh" in caught.value.detail


@pytest.mark.parametrize("damage", ["note", "fields", "weights", "missing"])
def test_a_damaged_save_is_an_error_that_says_what_to_do(tmp_path: Path, damage: str) -> None:
    saves_of(tmp_path).write(Position("one"), FitResult(), task={"a": torch.ones(2)})
    if damage == "note":
        (tmp_path / "progress.json").write_text("{")
    elif damage == "fields":
        note = json.loads((tmp_path / "progress.json").read_text())
        (tmp_path / "progress.json").write_text(json.dumps(note | {"position": {"colour": "blue"}}))
    elif damage == "weights":
        (tmp_path / "task.safetensors").write_bytes(b"\x00" * 30)
    else:
        (tmp_path / "task.safetensors").unlink()
    with pytest.raises(SavesError, match="--fresh"):
        saves_of(tmp_path).load("task")


# ----- folders -----


def fill(text: str) -> Any:
    return lambda folder: (folder / "file").write_text(text)


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """0: before the old one is put aside; 1: between the two renames; 2: before the old one is removed."""
    target, renames = tmp_path / "saves", []

    def rename(source: Path, to: Path) -> None:
        if len(renames) == dies_at:
            raise Killed
        renames.append(source)
        os_rename(source, to)

    replace_folder(target, fill("old"))
    os_rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        patch.setattr("shutil.rmtree", lambda *_, **__: renames == [] or (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            replace_folder(target, fill("new"))
    recover_folder(target)
    assert (target / "file").read_text() == ("new" if dies_at == 2 else "old")
    replace_folder(target, fill("newer"))
    assert [path.name for path in tmp_path.iterdir()] == ["saves"]
    assert (target / "file").read_text() == "newer"


def test_a_save_killed_between_the_renames_is_found_again(tmp_path: Path) -> None:
    saves_of(tmp_path / "saves").write(Position("one", step=5), FitResult(), task={})
    os.rename(tmp_path / "saves", tmp_path / "saves.replaced")
    found = saves_of(tmp_path / "saves").position
    assert found is not None
    assert found.step == 5


def test_a_removed_folder_does_not_come_back(tmp_path: Path) -> None:
    target = tmp_path / "saves"
    for name in ("saves", "saves.replaced", "saves.unfinished"):
        (tmp_path / name).mkdir()
    remove_folder(target)
    recover_folder(target)
    assert list(tmp_path.iterdir()) == []
