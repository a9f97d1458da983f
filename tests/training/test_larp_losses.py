"""WTC, TTC and TPC against their equations in float64 NumPy: value and gradient, with queue and empty columns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.larp.losses import (
    PlaylistRows,
    Relations,
    Side,
    Similar,
    Targets,
    cross_entropy,
    soft_cross_entropy,
    tpc,
    ttc,
    wtc,
)
from training.larp.pretraining import sides_of

Array = NDArray[np.float64]
Inputs = dict[str, Array]
"""online.audio [B, d], online.text, momentum.*, keys.* [K, d], fused.*, fused_keys.* [B, d] and tau []."""
BOTH, KINDS = ("audio", "text"), ("online", "momentum", "keys", "fused", "fused_keys")


@dataclass
class World:
    """A batch of tracks, their playlists as sets, and key columns [batch | queue] (-1: empty)."""

    tracks: list[int]
    partner: list[int]
    playlist: list[int]
    playlists: list[set[int]]
    columns: list[int]

    def related(self, i: int, j: int) -> bool:
        return i != j and any({i, j} <= members for members in self.playlists)

    def holds(self, playlist: int, track: int) -> bool:
        return playlist >= 0 and track in self.playlists[playlist]


def make_world(rng: np.random.Generator) -> World:
    """Three pairs that share a playlist, one track twice, one in no playlist; the queue has empty columns, and tracks
    of the batch again.
    """
    playlists = [{0, 1, 2}, {2, 3}, {4, 5, 6, 0}]
    tracks = [0, 2, 4, 9, 1, 3, 0]
    partner, playlist = [4, 5, 6, -1, 0, 1, 2], [0, 1, 2, -1, 0, 1, 2]
    return World(tracks, partner, playlist, playlists, [*tracks, *rng.permutation([0, 9, 5, 8, 7]).tolist(), -1, -1])


def make_inputs(w: World, rng: np.random.Generator, names: tuple[str, ...] = BOTH, dims: int = 5) -> Inputs:
    inputs: Inputs = {"tau": np.array(0.2)}
    for kind in KINDS:
        for name in names:
            x = rng.normal(size=(len(w.columns if kind == "keys" else w.tracks), dims))
            inputs[f"{kind}.{name}"] = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return inputs


# ----- the equations -----


@dataclass
class Equations:
    """The losses as the paper writes them, in loops over pairs. `before` is what the momentum model's opinion is made
    from: a constant.
    """

    w: World
    x: Inputs
    before: Inputs
    sides: list[Side]
    kind: str = "multi"
    alpha: float = 0.0
    positives: str = "mean"
    batch: int = field(init=False)

    def __post_init__(self) -> None:
        self.batch = len(self.w.tracks)

    def ce(
        self, query: tuple[str, int], keys: Callable[[Inputs], Array], positive: list[bool], ignored: list[bool]
    ) -> float:
        """Cross entropy of a multi-hot target, its mass shared evenly, with the softmax over the keys not ignored, or
        -log of the positives' part of it; alpha of the target is the momentum model's softmax.
        """
        kind, row = query
        there = [k for k in range(len(ignored)) if not ignored[k]]
        hits = [k for k in there if positive[k]]
        if not hits:
            return 0.0
        exp = {k: np.exp(self.x[kind][row] @ keys(self.x)[k] / self.x["tau"]) for k in there}
        log_share = {k: np.log(exp[k] / sum(exp.values())) for k in there}
        twin = kind.replace("online", "momentum").replace("fused", "fused_keys")
        said = {k: np.exp(self.before[twin][row] @ keys(self.before)[k] / self.before["tau"]) for k in there}
        hard = sum(log_share[k] for k in hits) / len(hits)
        if self.positives == "sum":
            hard = np.log(sum(exp[k] for k in hits) / sum(exp.values()))
        soft = sum(said[k] / sum(said.values()) * log_share[k] for k in there)
        return -(1 - self.alpha) * hard - self.alpha * soft

    def wtc(self) -> float:
        """Eq. 1, 13-15: Contrast(a_i, t_i) = 1/2 [CE(a_i over t) + CE(t_i over a)], mean over i."""
        w, total = self.w, 0.0
        for i, track in enumerate(w.tracks):
            same = [c == track if self.kind == "multi" else k == i for k, c in enumerate(w.columns)]
            related = [self.kind == "multi" and w.related(track, c) for c in w.columns]
            ignored = [c < 0 or r for c, r in zip(w.columns, related, strict=True)]
            for query, key in self.sides:
                one = self.ce((f"online.{query}", i), lambda x, key=key: x[f"keys.{key}"], same, ignored)
                total += one / len(self.sides)
        return total / self.batch

    def ttc(self) -> float:
        """Eq. 16-19: 1/2 [Contrast(a_i, t_j) + Contrast(t_i, a_j)] summed over the pairs (i, j), and the mean of it.

        Contrast(x_i, y_j) = 1/2 [CE(x_i over y, j) + CE(y_j over x, i)].
        """
        w = self.w

        def one(i: int, j: int, query: str, key: str) -> float:
            track = w.tracks[i]
            if self.kind == "multi":
                target, ignored = [w.related(track, c) for c in w.columns], [c in (-1, track) for c in w.columns]
            else:
                target, ignored = [k == j for k in range(len(w.columns))], [c < 0 for c in w.columns]
            return self.ce((f"online.{query}", i), lambda x: x[f"keys.{key}"], target, ignored)

        def contrast(i: int, j: int, x: str, y: str) -> float:
            return (one(i, j, x, y) + one(j, i, y, x)) / 2

        pairs = [(i, j) for i, j in enumerate(w.partner) if j >= 0]
        total = sum(contrast(i, j, x, y) for i, j in pairs for x, y in self.sides)
        return total / len(self.sides) / len(pairs)

    def tpc(self) -> float:
        """Eq. 20-25: 1/2 [Contrast(a_p, t_i) + Contrast(t_p, a_i)], mean over the tracks that have a playlist."""
        w, queue = self.w, self.w.columns[self.batch :]

        def playlist(i: int, query: str, key: str) -> float:
            target = [w.holds(w.playlist[i], c) if self.kind == "multi" else k == i for k, c in enumerate(w.columns)]
            return self.ce((f"fused.{query}", i), lambda x: x[f"keys.{key}"], target, [c < 0 for c in w.columns])

        def track(i: int, query: str, key: str) -> float:
            held = [w.holds(p, w.tracks[i]) if self.kind == "multi" else j == i for j, p in enumerate(w.playlist)]
            ignored = [p < 0 for p in w.playlist]
            near = [self.kind == "multi" and (c == w.tracks[i] or w.related(w.tracks[i], c)) for c in queue]
            ignored += [c < 0 or n for c, n in zip(queue, near, strict=True)]
            return self.ce(
                (f"online.{query}", i),
                lambda x: np.concatenate([x[f"fused_keys.{key}"], x[f"keys.{key}"][self.batch :]]),
                held + [False] * len(queue),
                ignored,
            )

        rows = [i for i, p in enumerate(w.playlist) if p >= 0]
        # The side a -> t holds both a_p over t and t's counterpart, a_i over the playlists t_p.
        total = sum((playlist(i, x, y) + track(i, x, y)) / 2 for i in rows for x, y in self.sides)
        return total / len(self.sides) / len(rows)


# ----- the code that is held against them -----


def relations_of(w: World, rows: list[int] | None = None) -> Relations:
    rows = list(range(len(w.tracks))) if rows is None else rows
    return Relations(
        same=torch.tensor([[c == w.tracks[i] for c in w.columns] for i in rows]),
        related=torch.tensor([[w.related(w.tracks[i], c) for c in w.columns] for i in rows]),
        filled=torch.tensor([c >= 0 for c in w.columns]),
        own=torch.tensor(rows),
        partner=torch.tensor([w.partner[i] for i in rows]),
        batch=len(w.tracks),
    )


def values_of(
    name: str,
    w: World,
    x: dict[str, Tensor],
    sides: list[Side],
    kind: str = "multi",
    alpha: float = 0.0,
    rows: list[int] | None = None,
    positives: str = "mean",
) -> Tensor:
    """The loss of each of the rows."""
    relations = relations_of(w, rows)
    own = relations.own
    towers = [tower for tower in BOTH if f"keys.{tower}" in x]
    online, momentum, fused = ({t: x[f"{kind_}.{t}"][own] for t in towers} for kind_ in ("online", "momentum", "fused"))
    keys, fused_keys = ({t: x[f"{kind_}.{t}"] for t in towers} for kind_ in ("keys", "fused_keys"))
    targets = Targets(kind, alpha, positives)

    def similar(queries: dict[str, Tensor], before: dict[str, Tensor], against: dict[str, Tensor]) -> Similar:
        return Similar.of(queries, before, against, x["tau"], sides, targets)

    found = similar(online, momentum, keys)
    if name != "tpc":
        return {"wtc": wtc, "ttc": ttc}[name](found, relations, sides, targets)
    playlists = PlaylistRows(
        to_tracks=similar(fused, {t: fused_keys[t][own] for t in towers}, keys),
        to_playlists=similar(online, momentum, fused_keys),
        holds=torch.tensor([[w.holds(w.playlist[i], c) for c in w.columns] for i in own.tolist()]),
        held=torch.tensor([[w.holds(p, w.tracks[i]) for p in w.playlist] for i in own.tolist()]),
        there=torch.tensor([p >= 0 for p in w.playlist]),
    )
    return tpc(found, relations, playlists, sides, targets)


def mean_of(name: str, w: World, values: Tensor) -> Tensor:
    """The batch's loss: the mean over the rows that have what it is about."""
    counts = {"wtc": len(w.tracks), "ttc": sum(p >= 0 for p in w.partner), "tpc": sum(p >= 0 for p in w.playlist)}
    return values.sum() / counts[name]


def tensors_of(x: Inputs, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in x.items()}


def both_of(
    name: str, seed: int, sides: list[Side], kind: str, alpha: float, positives: str
) -> tuple[Callable[[Inputs], float], World, Inputs]:
    names = tuple(tower for tower in BOTH if any(tower in side for side in sides))
    rng = np.random.default_rng(seed)
    w = make_world(rng)
    inputs = make_inputs(w, rng, names)
    return lambda x: getattr(Equations(w, x, inputs, sides, kind, alpha, positives), name)(), w, inputs


CROSS, ALL = (sides_of(BOTH)[kind] for kind in ("cross", "all"))
ALONE = sides_of(("text",))["cross"]
CASES = [
    *((name, "multi", 0.0, CROSS) for name in ("wtc", "ttc", "tpc")),
    *((name, "diagonal", 0.0, CROSS) for name in ("wtc", "ttc", "tpc")),
    *((name, "multi", 0.3, CROSS) for name in ("wtc", "ttc", "tpc")),
    *((name, "diagonal", 0.4, CROSS) for name in ("wtc", "ttc", "tpc")),
    *((name, "multi", 0.0, ALL) for name in ("ttc", "tpc")),
    *((name, "multi", 0.25, ALONE) for name in ("ttc", "tpc")),
]


@pytest.mark.parametrize(("name", "kind", "alpha", "sides"), CASES)
@pytest.mark.parametrize("positives", ["mean", "sum"])
@pytest.mark.parametrize("seed", [1, 2])
def test_value_and_gradient_are_those_of_the_equations(
    name: str, kind: str, alpha: float, sides: list[Side], seed: int, positives: str
) -> None:
    reference, w, inputs = both_of(name, seed, sides, kind, alpha, positives)
    tensors = tensors_of(inputs)
    value = mean_of(name, w, values_of(name, w, tensors, sides, kind, alpha, positives=positives))
    assert value.item() == pytest.approx(reference(inputs), rel=1e-12)

    value.backward()
    rng = np.random.default_rng(seed)
    for key, tensor in tensors.items():
        if key.startswith("momentum"):
            assert tensor.grad is None  # its opinion is a constant
            continue
        gradient = np.zeros_like(inputs[key]) if tensor.grad is None else tensor.grad.numpy()
        for _ in range(4):
            direction = rng.normal(size=inputs[key].shape)
            above, below = ({**inputs, key: inputs[key] + sign * 1e-6 * direction} for sign in (1, -1))
            slope = (reference(above) - reference(below)) / 2e-6
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8), key


@pytest.mark.parametrize(("name", "kind", "alpha", "sides"), CASES)
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_float32_agrees(name: str, kind: str, alpha: float, sides: list[Side], positives: str) -> None:
    reference, w, inputs = both_of(name, 3, sides, kind, alpha, positives)
    inputs["tau"] = np.array(0.02)
    values = values_of(name, w, tensors_of(inputs, torch.float32), sides, kind, alpha, positives=positives)
    value = mean_of(name, w, values)
    assert value.item() == pytest.approx(reference(inputs), rel=2e-5)


@pytest.mark.parametrize(("name", "kind", "alpha", "sides"), CASES)
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_rows_may_come_in_parts(name: str, kind: str, alpha: float, sides: list[Side], positives: str) -> None:
    _, w, inputs = both_of(name, 4, sides, kind, alpha, positives)
    tensors = tensors_of(inputs)
    whole = values_of(name, w, tensors, sides, kind, alpha, None, positives)
    shares = ([0, 1, 2], [3], [4, 5, 6])
    parts = [values_of(name, w, tensors, sides, kind, alpha, rows, positives) for rows in shares]
    assert whole.shape == (7,)
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-13)


def test_sides() -> None:
    assert CROSS == [("audio", "text"), ("text", "audio")]
    assert [*CROSS, ("audio", "audio"), ("text", "text")] == ALL
    for kind in ("cross", "all"):
        assert sides_of(("audio",))[kind] == [("audio", "audio")]


def test_a_track_without_playlist_counts_in_wtc_alone() -> None:
    w = World([5], [-1], [-1], [{0, 1}], [5, 0, -1])
    tensors = tensors_of(make_inputs(w, np.random.default_rng(0)))
    for targets in ("multi", "diagonal"):
        assert values_of("wtc", w, tensors, CROSS, targets, 0.2).item() > 0
        pair, playlist = (values_of(name, w, tensors, CROSS, targets, 0.2) for name in ("ttc", "tpc"))
        assert (pair.item(), playlist.item()) == (0.0, 0.0)
        (pair + playlist).sum().backward()
        gradient = tensors["online.audio"].grad
        assert gradient is not None
        assert gradient.abs().sum().item() == 0.0


def test_positives_share_the_mass_and_ignored_columns_do_not_count() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 4.0, 100.0], [1.0, 1.0, 1.0, 1.0]]))
    positive = torch.tensor([[True, True, False, True], [False, False, False, False]])
    ignored = torch.tensor([[False, False, False, True], [True, True, True, True]])
    expected = -(np.log(1 / 7) + np.log(2 / 7)) / 2
    assert cross_entropy(logits, positive, ignored).tolist() == pytest.approx([expected, 0.0])
    opinion = torch.log(torch.tensor([[1.0, 1.0, 2.0, 50.0], [1.0, 1.0, 1.0, 1.0]]))
    soft = -(np.log(1 / 7) / 4 + np.log(2 / 7) / 4 + np.log(4 / 7) / 2)
    assert soft_cross_entropy(logits, opinion, ignored).tolist() == pytest.approx([soft, 0.0])


def test_rows_with_nothing_to_compare_have_no_gradient_either() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    ignored = torch.tensor([[True] * 3, [True, False, False]])
    positive = torch.tensor([[True] * 3, [True, False, False]])
    (cross_entropy(logits, positive, ignored) + soft_cross_entropy(logits, logits.detach(), ignored)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max().item() == 0.0


def test_positives_far_behind_another_column_still_pull() -> None:
    logits = torch.tensor([[0.0, 500.0, 1000.0, 2000.0]], requires_grad=True)
    positive, ignored = torch.tensor([[True, True, False, True]]), torch.tensor([[False, False, False, True]])
    value = cross_entropy(logits, positive, ignored, "sum")
    value.sum().backward()
    assert value.tolist() == [500.0]
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, -1.0, 1.0, 0.0]]
