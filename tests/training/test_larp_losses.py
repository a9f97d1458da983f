"""WTC, TTC and TPC against their equations in float64 NumPy: value and gradient, with queue and empty columns."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.larp.losses import Keys, PlaylistSide, Relations, cross_entropy, tpc, ttc, wtc

Array = NDArray[np.float64]


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
    """Three pairs that share a playlist, one track twice, one track in no playlist; a queue with empty columns."""
    playlists = [{0, 1, 2}, {2, 3}, {4, 5, 6, 0}]
    tracks = [0, 2, 4, 9, 1, 3, 6]
    partner, playlist = [4, 5, 6, -1, 0, 1, 2], [0, 1, 2, -1, 0, 1, 2]
    return World(tracks, partner, playlist, playlists, [*tracks, *rng.permutation([0, 9, 5, 8, 7]), -1, -1])


def unit(rng: np.random.Generator, *shape: int) -> Array:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ----- the equations -----


def ce(query: Array, keys: Array, tau: float, positive: list[bool], ignored: list[bool]) -> float:
    """Cross entropy of a multi-hot target, its mass shared evenly, with the softmax over the keys not ignored."""
    exp = {k: np.exp(query @ keys[k] / tau) for k in range(len(keys)) if not ignored[k]}
    hits = [k for k in exp if positive[k]]
    return -sum(np.log(exp[k] / sum(exp.values())) for k in hits) / len(hits) if hits else 0.0


def numpy_wtc(w: World, a: Array, t: Array, ka: Array, kt: Array, tau: float) -> float:
    """Eq. 13-15: 1/2 [CE(a_i over t) + CE(t_i over a)], mean over i."""
    total = 0.0
    for i, track in enumerate(w.tracks):
        same = [c == track for c in w.columns]
        ignored = [c < 0 or w.related(track, c) for c in w.columns]
        total += (ce(a[i], kt, tau, same, ignored) + ce(t[i], ka, tau, same, ignored)) / 2
    return total / len(w.tracks)


def numpy_ttc(w: World, a: Array, t: Array, ka: Array, kt: Array, tau: float) -> float:
    """Eq. 16-19: 1/2 [Contrast(a_i, t_j) + Contrast(t_i, a_j)], mean over the pairs (i, j)."""

    def one(i: int, query: Array, keys: Array) -> float:
        track = w.tracks[i]
        target = [w.related(track, c) for c in w.columns]
        return ce(query[i], keys, tau, target, [c in (-1, track) for c in w.columns])

    pairs = [(i, j) for i, j in enumerate(w.partner) if j >= 0]
    return sum(((one(i, a, kt) + one(j, t, ka)) / 2 + (one(i, t, ka) + one(j, a, kt)) / 2) / 2 for i, j in pairs) / len(
        pairs
    )


def numpy_tpc(
    w: World, a: Array, t: Array, ap: Array, tp: Array, kap: Array, ktp: Array, ka: Array, kt: Array, tau: float
) -> float:
    """Eq. 20-25: 1/2 [Contrast(a_p, t_i) + Contrast(t_p, a_i)], mean over the tracks that have a playlist."""
    batch, queue = len(w.tracks), w.columns[len(w.tracks) :]

    def playlist(p: int, query: Array, keys: Array) -> float:
        target = [w.holds(p, c) for c in w.columns]
        return ce(query, keys, tau, target, [c < 0 for c in w.columns])

    def track(i: int, query: Array, playlist_keys: Array, keys: Array) -> float:
        held = [w.holds(p, w.tracks[i]) for p in w.playlist] + [False] * len(queue)
        ignored = [p < 0 for p in w.playlist]
        ignored += [c in (-1, w.tracks[i]) or w.related(w.tracks[i], c) for c in queue]
        return ce(query, np.concatenate([playlist_keys, keys[batch:]]), tau, held, ignored)

    rows = [i for i, p in enumerate(w.playlist) if p >= 0]
    total = 0.0
    for i in rows:
        contrast_pt = (playlist(w.playlist[i], ap[i], kt) + track(i, t[i], kap, ka)) / 2
        contrast_pa = (playlist(w.playlist[i], tp[i], ka) + track(i, a[i], ktp, kt)) / 2
        total += (contrast_pt + contrast_pa) / 2
    return total / len(rows)


# ----- the tests -----


def relations_of(w: World) -> Relations:
    return Relations(
        same=torch.tensor([[c == track for c in w.columns] for track in w.tracks]),
        related=torch.tensor([[w.related(track, c) for c in w.columns] for track in w.tracks]),
        filled=torch.tensor([c >= 0 for c in w.columns]),
    )


def torch_tpc(w: World, a: torch.Tensor, t: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    ap, tp, kap, ktp, ka, kt, tau = rest
    playlists = PlaylistSide(
        audio=ap,
        text=tp,
        key_audio=kap,
        key_text=ktp,
        holds=torch.tensor([[w.holds(p, c) for c in w.columns] for p in w.playlist]),
        held=torch.tensor([[w.holds(p, track) for p in w.playlist] for track in w.tracks]),
        there=torch.tensor([p >= 0 for p in w.playlist]),
    )
    return tpc(a, t, playlists, Keys(ka, kt), relations_of(w), tau)


LOSSES = {
    "wtc": (
        numpy_wtc,
        lambda w, a, t, ka, kt, tau: wtc(a, t, Keys(ka, kt), relations_of(w), tau),
        ("batch", "batch", "keys", "keys"),
    ),
    "ttc": (
        numpy_ttc,
        lambda w, a, t, ka, kt, tau: ttc(a, t, Keys(ka, kt), relations_of(w), torch.tensor(w.partner), tau),
        ("batch", "batch", "keys", "keys"),
    ),
    "tpc": (numpy_tpc, torch_tpc, ("batch",) * 6 + ("keys",) * 2),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [1, 2])
def test_value_and_gradient_are_those_of_the_equations(name: str, seed: int) -> None:
    reference, loss, kinds = LOSSES[name]
    rng = np.random.default_rng(seed)
    w = make_world(rng)
    sizes = {"batch": len(w.tracks), "keys": len(w.columns)}
    inputs = [unit(rng, sizes[kind], 5) for kind in kinds] + [np.array(0.2)]

    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    value = loss(w, *tensors)
    assert value.item() == pytest.approx(reference(w, *inputs), rel=1e-12)

    gradients = torch.autograd.grad(value, tensors)
    for k, gradient in enumerate(gradients):
        for place in np.ndindex(inputs[k].shape):
            moved = [x.copy() for x in inputs]
            moved[k][place] += 1e-6
            above = reference(w, *moved)
            moved[k][place] -= 2e-6
            slope = (above - reference(w, *moved)) / 2e-6
            assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), (k, place)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_agrees(name: str) -> None:
    reference, loss, kinds = LOSSES[name]
    rng = np.random.default_rng(3)
    w = make_world(rng)
    sizes = {"batch": len(w.tracks), "keys": len(w.columns)}
    inputs = [unit(rng, sizes[kind], 64) for kind in kinds] + [np.array(0.01)]
    value = loss(w, *(torch.tensor(x, dtype=torch.float32) for x in inputs))
    assert value.item() == pytest.approx(reference(w, *inputs), rel=1e-5)


def test_a_track_without_playlist_counts_in_wtc_alone() -> None:
    w = World([5], [-1], [-1], [{0, 1}], [5, 0, -1])
    rng = np.random.default_rng(0)
    a, t, keys = (torch.tensor(unit(rng, n, 3), requires_grad=True) for n in (1, 1, 3))
    tau = torch.tensor(0.1, dtype=torch.float64)
    relations = relations_of(w)
    assert wtc(a, t, Keys(keys, keys), relations, tau).item() > 0
    pair = ttc(a, t, Keys(keys, keys), relations, torch.tensor(w.partner), tau)
    playlist = torch_tpc(w, a, t, a, t, a, t, keys, keys, tau)
    assert (pair.item(), playlist.item()) == (0.0, 0.0)
    (pair + playlist).backward()
    assert a.grad is not None
    assert a.grad.abs().sum().item() == 0.0


def test_positives_share_the_mass_and_ignored_columns_do_not_count() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 4.0, 100.0], [1.0, 1.0, 1.0, 1.0]]))
    positive = torch.tensor([[True, True, False, True], [False, False, False, False]])
    ignored = torch.tensor([[False, False, False, True], [True, True, True, True]])
    expected = -(np.log(1 / 7) + np.log(2 / 7)) / 2
    assert cross_entropy(logits, positive, ignored).tolist() == pytest.approx([expected, 0.0])
