"""Two processes (gloo on this machine) against one: the same gradients, weights, queues and tables."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.distributed import World, joined
from training.hardware import HardwareError

HERE = Path(__file__).parent
SIZE = 2

CHILD = """
import sys
from dataclasses import replace
from pathlib import Path

import torch
from larp_small import STEADY, stages_of
from safetensors.torch import save_file

from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.distributed import joined, world
from training.hardware import reproducible
from training.larp.corpus import CorpusError
from training.larp.training import Run, Trainer, train_larp
from training.progress import Silent

data, clips, folder = map(Path, sys.argv[1:])
dataset = DataSet.open(data)
cache = ClipCache.build(dataset, clips, Silent())
CASES = {
    "three": stages_of(STEADY, 1, 1, 2, 3),
    "odd": stages_of(replace(STEADY, batch_size=7, micro_batch=2, targets="diagonal", distill=0.4), 1, 3),
    "frozen": stages_of(replace(STEADY, freeze=True, sides="all"), 2, 3),
    "text": stages_of(replace(STEADY, towers=("text",)), 1, 3),
}


class Exact:
    # The content in float64, where Adam does not make steps of rounding errors.
    def __init__(self, content):
        self.frozen, self.available, self.content = content.frozen, content.available, content

    def inputs(self, *args):
        return tuple(x.double() if x.is_floating_point() else x for x in self.content.inputs(*args))


with joined() as here:
    for count in (2, 3, 5, 8):
        whole = torch.arange(float(count * 2)).view(count, 2)
        assert torch.equal(here.gather(whole[here.share(count)], count), whole)
    one, two = torch.full((2, 3), here.rank + 1.0), torch.tensor(float(here.rank))
    here.sum_([one, two])
    assert one.tolist() == [[here.size * (here.size + 1) / 2] * 3] * 2
    assert two.item() == here.size * (here.size - 1) / 2
    assert here.from_first([here.rank + 0.1, 2.0], torch.device("cpu")) == [0.1, 2.0]
    for name, config in CASES.items():
        run = Run(folder / name, None, folder / f"{name}.features")
        with reproducible(config.loop.seed, 1):
            trainer = Trainer(dataset, cache, run, config, Silent())
            trainer.pretraining.double()
            trainer.corpus.content = Exact(trainer.content)
            trainer.validation = None  # the last epoch is kept
            trainer.train()
        state = {key: tensor.contiguous().clone() for key, tensor in trainer.pretraining.state_dict().items()}
        save_file(state, folder / f"{name}-{here.size}-{here.rank}.safetensors")
    if here.size > 1:
        try:
            train_larp(dataset, cache, Run(folder / "few"), replace(STEADY, batch_size=2), Silent())
        except CorpusError as error:
            assert "too few for 2 processes" in error.detail, error.detail
        else:
            raise AssertionError("batches of one track were shared by two processes")
assert world().size == 1
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(rank: int, size: int, port: int, arguments: list[str]) -> subprocess.Popen[str]:
    """One process as torchrun would start it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    paths = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | paths | {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What they said; none may fail."""
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [err for _, err in said]


@pytest.fixture(scope="module")
def states(
    small_data: Path, clips: object, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:  # a folder with what one process and each of two end in
    folder = tmp_path_factory.mktemp("world")
    arguments = ["-c", CHILD, str(small_data), str(clip_folder), str(folder)]
    port = free_port()
    finish([start(rank, SIZE, port, arguments) for rank in range(SIZE)])
    finish([start(0, 1, port, arguments)])
    return folder


@pytest.mark.parametrize("name", ["three", "odd", "frozen", "text"])
def test_two_processes_end_where_one_does(states: Path, name: str) -> None:
    """Weights, momentum copies, tables and queue, in float64; augmentation is on."""
    alone, first, second = (
        load_file(states / f"{name}-{size}-{rank}.safetensors") for size, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert alone.keys() == first.keys() == second.keys()
    for key, expected in alone.items():
        if expected.is_floating_point():
            assert (first[key] - expected).abs().max().item() <= 1e-9, key
        else:
            assert torch.equal(first[key], expected), key
        assert torch.equal(first[key], second[key]), key
    assert (alone["queue.ids"] >= 0).all()
    assert np.allclose(alone["text_table"].norm(dim=1), 1)


def test_shares_cover_the_batch_and_differ_by_one_at_most() -> None:
    for size in (1, 2, 3, 7):
        for count in (1, 2, 5, 14, 50):
            shares = [World(rank, size).share(count) for rank in range(size)]
            assert [k for share in shares for k in range(count)[share]] == list(range(count))
            lengths = [len(range(count)[share]) for share in shares]
            assert max(lengths) - min(lengths) <= 1
            assert [World(0, size).share(count, rank) for rank in range(size)] == shares


def test_alone_nothing_is_exchanged() -> None:
    with joined() as world:
        assert world == World(0, 1)
        assert world.first
        tensor = torch.ones(3, requires_grad=True)
        assert torch.equal(world.gather(tensor, 3), tensor.detach())
        assert not world.gather(tensor, 3).requires_grad
        world.sum_([tensor])
        world.wait()
        assert tensor.tolist() == [1, 1, 1]
        assert world.from_first([1.5], torch.device("cpu")) == [1.5]


def test_a_process_without_a_gpu_of_its_own_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HardwareError, match="process 2 of this machine has no GPU: start 2"), joined():
        raise AssertionError("it joined")


@pytest.mark.long
def test_the_command_line_under_torchrun(small_data: Path, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(clip_folder)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = ["--master-port", str(free_port()), "-m", "training", "larp", str(small_data), "--work", str(tmp_path)]
    (said,) = finish([start(0, 1, 0, [*torchrun, *command, "--preset", "tiny"])])
    assert "on cpu, 2 processes" in said
    assert said.count("LARP stage 3/3 (WTC+TTC+TPC): R@10") == 1  # one of them speaks
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "clips", "encoder", "larp", "vectors"]
    assert len(np.load(tmp_path / "vectors/continuation.npy")) > 20
