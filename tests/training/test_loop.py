"""The loop, on a task of two parameters whose course can be worked out."""

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.loop import (
    LoopConfig,
    TrainingError,
    copy_state,
    fit,
    learning_rate,
    pick_device,
    reproducible,
    uses_bf16,
)
from training.progress import Progress, Silent


class Line(nn.Module):
    """Fits y = 2 x + 1 by least squares; the validation scores are given."""

    name = "line"

    def __init__(self, scores: list[float], batches: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self._scores = iter(scores)
        self._batches = batches
        self.after = 0
        self.modes: list[tuple[bool, bool]] = []

    def steps(self, epoch: int) -> int:
        return self._batches

    def batches(self, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(self._batches):
            yield torch.randn(8, 1, generator=generator)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        self.modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        error = (batch @ self.weight + self.bias - (2 * batch + 1)).square().mean()
        return error, {"error": error.item()}

    def after_step(self) -> None:
        self.after += 1

    def validate(self) -> float:
        self.modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return next(self._scores)


def settings(**changes: Any) -> LoopConfig:
    return LoopConfig(**({"epochs": 5, "lr": 0.1, "precision": "fp32", "device": "cpu", "patience": 0} | changes))


def test_it_learns_and_reports() -> None:
    task = Line([float(k) for k in range(60)])
    result = fit(task, settings(epochs=60), Silent())
    assert task.weight.item() == pytest.approx(2, abs=0.1)
    assert task.bias.item() == pytest.approx(1, abs=0.1)
    assert task.after == 180
    assert (result.best_score, result.best_epoch, len(result.history)) == (59.0, 59, 60)
    assert result.history[0].keys() == {"epoch", "loss", "error", "score"}
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 100


def test_the_best_epoch_is_restored() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watched(Line):
        def validate(self) -> float:
            seen.append(copy_state(dict(self.state_dict())))
            return super().validate()

    task = Watched([0.1, 0.7, 0.7, 0.2, 0.3])
    result = fit(task, settings(), Silent())
    assert (result.best_score, result.best_epoch) == (0.7, 1)  # of equal scores the first
    assert all(torch.equal(value, seen[1][name]) for name, value in task.state_dict().items())
    assert not torch.equal(task.weight, seen[4]["weight"])


def test_patience_ends_the_run() -> None:
    result = fit(Line([0.5, 0.4, 0.3, 0.9, 0.9]), settings(patience=2), Silent())
    assert (len(result.history), result.best_epoch) == (3, 0)


def test_one_step_is_adamw_with_clipping() -> None:
    task, twin = Line([0.0]), Line([0.0])
    config = settings(epochs=1, lr=0.05, weight_decay=0.3, clip_norm=0.01)
    with torch.no_grad():
        for line in (task, twin):
            line.weight.fill_(5.0)
    fit(task, config, Silent())
    groups = [{"params": [twin.weight], "weight_decay": 0.3}, {"params": [twin.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.05, betas=config.betas)
    for step, batch in enumerate(twin.batches(0)):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
        optimiser.zero_grad()
        twin.loss(batch)[0].backward()
        nn.utils.clip_grad_norm_([twin.weight, twin.bias], 0.01)
        optimiser.step()
    assert torch.equal(task.weight, twin.weight)
    assert torch.equal(task.bias, twin.bias)
    assert task.frozen.item() == 1.0


def test_the_schedule() -> None:
    config = LoopConfig(lr=2.0, warmup_steps=4)
    rates = [learning_rate(step, 14, config) for step in range(14)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[9] == pytest.approx(1.0)  # half way down
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.06
    assert learning_rate(99, 14, config) == 0


def test_precision_and_gradients_where_they_belong() -> None:
    task = Line([0.0], batches=1)
    fit(task, settings(epochs=1, precision="bf16"), Silent())
    assert task.modes == [(True, True), (False, True)]
    task = Line([0.0], batches=1)
    fit(task, settings(epochs=1), Silent())
    assert task.modes == [(True, False), (False, False)]


def test_auto_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, expected in (({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert uses_bf16("auto", cpu) is expected
    assert uses_bf16("bf16", cpu)
    assert not uses_bf16("fp32", cpu)


def test_a_loss_or_score_that_is_not_finite_stops_the_run() -> None:
    class Broken(Line):
        def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
            return super().loss(batch)[0] * float("nan"), {}

    with pytest.raises(TrainingError, match="line: the loss is nan at step 0"):
        fit(Broken([0.0]), settings(), Silent())
    with pytest.raises(TrainingError, match="validation score is nan"):
        fit(Line([float("nan")]), settings(), Silent())


def test_devices() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(TrainingError, match="device 'toaster'") as caught:
        pick_device("toaster")
    assert caught.value.code == "device_missing"


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"patience": -1}, {"precision": "fp16"}, {"lr": float("nan")}]
)
def test_settings_outside_their_range(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        LoopConfig(**wrong)


def test_copies_share_nothing() -> None:
    state = {"a": torch.ones(2), "b": {"c": [torch.zeros(1), 3]}}
    copied = copy_state(state)
    state["a"].zero_()
    state["b"]["c"][0].fill_(9)
    assert copied["a"].tolist() == [1, 1]
    assert copied["b"]["c"][0].item() == 0
    assert copied["b"]["c"][1] == 3


def test_progress_says_stage_epoch_figures_and_time_left() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock, out = Clock(), io.StringIO()

    class Slow(Line):
        def after_step(self) -> None:
            clock.now += 2.0

    fit(Slow([0.25, 0.5]), settings(epochs=2), Progress(out, interval_s=5.0, clock=clock))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("line: 1/6 (16 %), epoch 1/2, loss ")
    assert lines[0].endswith(", 0:10 left")  # a step took 2 s, 5 are left
    assert lines[1].startswith("line: 4/6 (66 %), epoch 2/2, loss ")
    assert lines[1].endswith(", score 0.25, best 0.25, 0:04 left")
    assert lines[-1].startswith("line: 6 of 6 done, epoch 2/2, loss ")
    assert lines[-1].endswith(", score 0.5, best 0.5, took 0:12")
    assert len(lines) == 3  # a line every 5 s at most


def test_a_task_may_scale_the_learning_rate_of_a_parameter() -> None:
    class Scaled(Line):
        def lr_scales(self) -> dict[nn.Parameter, float]:
            return {self.bias: 0.1}

    task, plain = Scaled([0.0], batches=1), Line([0.0], batches=1)
    for line in (task, plain):
        fit(line, settings(epochs=1, weight_decay=0.0, clip_norm=0.0), Silent())
    assert torch.equal(task.weight, plain.weight)
    assert task.bias.item() == pytest.approx(0.1 * plain.bias.item())


def test_a_run_can_be_repeated_and_leaves_seed_and_threads_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    threads, drawn = torch.get_num_threads(), []
    for _ in range(2):
        with reproducible(settings(threads=1, seed=3)):
            assert torch.get_num_threads() == 1
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)
