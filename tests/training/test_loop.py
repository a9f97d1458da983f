"""The loop, on a task of two parameters whose course can be worked out."""

import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.hardware import HardwareError, out_of_memory, pick_device, reproducible, uses_bf16
from training.loop import LoopConfig, TrainingError, copy_state, fit, learning_rate
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

    def batches(self, epoch: int, start: int = 0) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        for number in range(self._batches):
            batch = torch.randn(8, 1, generator=generator)
            if number >= start:
                yield batch

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
    with pytest.raises(HardwareError, match="device 'toaster'") as caught:
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
        with reproducible(3, threads=1):
            assert torch.get_num_threads() == 1
            drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(2), expected)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(5)))
    for processes, expected in (("1", 5), ("2", 2), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        with reproducible(0):
            assert torch.get_num_threads() == expected
        with reproducible(0, threads=3):
            assert torch.get_num_threads() == 3


# ----- parts, and running out of memory -----


class Divided(Line):
    """Gives its batch in parts of at most `micro` rows; parts over `fits` rows run out of memory."""

    def __init__(self, micro: int, fits: int = 8, error: Exception | None = None) -> None:
        super().__init__([0.0], batches=4)
        self.micro, self.fits, self.error = micro, fits, error
        self.sizes: list[int] = []

    def parts(self, batch: Tensor) -> list[tuple[Tensor, int]]:
        return [(part, len(batch)) for part in batch.split(self.micro)]

    def loss(self, batch: tuple[Tensor, int]) -> tuple[Tensor, dict[str, float]]:  # type: ignore[override]
        part, count = batch
        self.sizes.append(len(part))
        if len(part) > self.fits and self.error:
            raise self.error
        error = (part @ self.weight + self.bias - (2 * part + 1)).square().sum() / count
        return error, {"error": error.item()}

    def halve(self) -> bool:
        self.micro //= 2
        return self.micro > 0


def test_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    whole, divided = Line([0.0], batches=4), Divided(3)
    results = [fit(task, settings(epochs=1, clip_norm=0.0), Silent()) for task in (whole, divided)]
    assert divided.sizes == [3, 3, 2] * 4
    assert torch.allclose(whole.weight, divided.weight, atol=1e-6)
    assert torch.allclose(whole.bias, divided.bias, atol=1e-6)
    for name, value in results[0].history[0].items():
        assert results[1].history[0][name] == pytest.approx(value, rel=1e-5), name


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "mmap", "python"])
def test_a_batch_that_does_not_fit_is_encoded_in_smaller_parts(error: Exception) -> None:
    said = io.StringIO()
    tight, roomy = Divided(8, fits=2, error=error), Divided(2)
    fit(tight, settings(epochs=1), Progress(said, interval_s=1e9))
    fit(roomy, settings(epochs=1), Silent())
    assert tight.sizes == [8, 4] + [2] * 16  # found out in the first step, remembered in the others
    assert torch.equal(tight.weight, roomy.weight)
    assert torch.equal(tight.bias, roomy.bias)
    assert said.getvalue().count("line: memory ran out; from here on batches are encoded in smaller parts") == 2


def test_memory_that_holds_not_even_one_is_an_error_that_says_what_to_do() -> None:
    tight = Divided(8, fits=0, error=OUT_OF_MEMORY[1])
    with pytest.raises(TrainingError, match=r"memory ran out at step 0 \(.*not enough memory.*--micro-batch") as caught:
        fit(tight, settings(epochs=1), Silent())
    assert caught.value.code == "out_of_memory"
    assert tight.sizes == [8, 4, 2, 1]


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    assert all(out_of_memory(error) for error in OUT_OF_MEMORY)
    assert not out_of_memory(ValueError("not enough memory"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(Divided(8, fits=0, error=RuntimeError("shapes differ")), settings(epochs=1), Silent())


def test_a_step_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    class Drawing(Line):
        drawn: list[float]

        def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
            self.drawn.append(torch.rand(()).item())
            return super().loss(batch)

        def validate(self) -> float:
            torch.rand(self.draws)
            return 0.0

    tasks = [Drawing([]), Drawing([])]
    for draws, task in enumerate(tasks, 1):
        task.drawn, task.draws = [], draws
        fit(task, settings(epochs=2), Silent())
    assert tasks[0].drawn == tasks[1].drawn
    assert len(set(tasks[0].drawn)) == 6


def test_curves_go_to_the_board() -> None:
    class Curves:
        def __init__(self) -> None:
            self.points: list[tuple[str, int, float]] = []

        def scalars(self, values: dict[str, float], step: int) -> None:
            self.points += [(name, step, value) for name, value in values.items()]

    task, curves = Line([0.25, 0.5], batches=10), Curves()
    fit(task, settings(epochs=2), Silent(), board=curves)  # type: ignore[arg-type]
    assert {(name, step) for name, step, _ in curves.points} == {
        (f"line/{name}", step) for step in (10, 20) for name in ("loss", "error", "lr", "score")
    }
    assert [value for name, _, value in curves.points if name == "line/score"] == [0.25, 0.5]
