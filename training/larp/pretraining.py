"""What LARP trains and what it is trained against: towers, momentum copies, queue, lookup tables and fusion.

A step in three moves: `keys` encodes the batch with the momentum towers, on every rank its share, and puts all shares
together; `losses` encodes rows of the batch, once each, and contrasts them with all keys; `after_step` lets the
momentum copies, the queue and the tables follow. The keys carry no gradient, so the rows may come in as many parts as
memory asks for, here or on other ranks: the gradients add up to those of the whole batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training.distributed import World
from training.larp.config import LarpConfig
from training.larp.fusion import make_fusion
from training.larp.losses import PlaylistRows, Relations, Side, Similar, Targets, tpc, ttc, wtc
from training.larp.model import Larp
from training.larp.queue import MomentumQueue, follow, momentum_copy

Inputs = Mapping[str, tuple[Tensor, ...]]
"""What each tower reads, by its name: tensors whose first dimension is the tracks."""


@dataclass
class Step:
    """One batch of B tracks on its way: all tensors on the device of the model, and the same on every rank.

    tracks i64 [B]: which of the training tracks; partner i64 [B]: place in the batch of a track that shares a playlist,
    -1 for none; seeds i64 [B, J]: tracks of the playlist of each, padded with -1. keys: momentum vectors of the batch,
    then of the queue, by tower, f32 [B + queue, d]; columns i64 [B + queue]: their tracks, -1 where empty. alpha: of
    `distill`. online: the vectors of this rank's rows as they come, by tower, and their places.
    """

    tracks: Tensor
    partner: Tensor
    seeds: Tensor
    keys: dict[str, Tensor]
    columns: Tensor
    alpha: float = 0.0
    online: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)

    @property
    def there(self) -> Tensor:
        """Which tracks came with a playlist that has others, bool [B]."""
        return (self.seeds >= 0).any(1)


@dataclass(frozen=True)
class Neighbourhood:
    """How R rows of a batch and their playlists stand to the key columns [batch | queue]; bool as in `losses`."""

    same: Tensor
    related: Tensor
    holds: Tensor
    held: Tensor


class Pretraining(nn.Module):
    """The parameters (`online`, `fusion`) and what follows them, over `tracks` training tracks.

    Buffers <tower>_table f32 [tracks, dims]: the latest vectors of every track (A and T of section 3.2.3). With
    `freeze` the towers' encoders are no part of it: inputs are their outputs, and only heads are copied and trained.
    """

    def __init__(self, larp: Larp, config: LarpConfig, tracks: int) -> None:
        super().__init__()
        self.online = larp
        self.frozen = config.freeze
        self.fusion = make_fusion(config.fusion, larp.dims, config.seeds, config.fusion_positions)
        followed = {name: self.module(name) for name in larp.names} | {"fusion": self.fusion}
        self.twins = nn.ModuleDict({name: momentum_copy(module) for name, module in followed.items()})
        self.queue = MomentumQueue(larp.names, config.queue, larp.dims)
        for name in larp.names:
            self.register_buffer(f"{name}_table", torch.zeros(tracks, larp.dims))
        self.sides = sides_of(larp.names)
        self._config = config
        if config.fixed_temperature:
            larp.temperature.requires_grad_(False)

    def module(self, name: str) -> nn.Module:
        """What encodes one tower's inputs: the tower, or its head alone where the encoders are frozen."""
        return self.online.tower(name).head if self.frozen else self.online.tower(name)

    def table(self, name: str) -> Tensor:
        """The lookup table of one tower, f32 [tracks, dims]."""
        return self.get_buffer(f"{name}_table")

    def trained(self, fusion: bool) -> list[nn.Parameter]:
        """The parameters to optimise."""
        modules = [self.module(name) for name in self.online.names] + ([self.fusion] if fusion else [])
        return [self.online.temperature, *(p for module in modules for p in module.parameters())]

    def train(self, mode: bool = True) -> "Pretraining":
        """Switch the online parts; momentum copies stay in evaluation mode."""
        super().train(mode)
        self.twins.eval()
        return self

    @torch.no_grad()
    def keys(self, parts: Sequence[Inputs], count: int, world: World) -> dict[str, Tensor]:
        """Momentum vectors of a batch of `count` tracks and of the queue, by tower; `parts`: this rank's share."""
        keys = {}
        for name in self.online.names:
            mine = torch.cat([self.twins[name](*part[name]) for part in parts])
            keys[name] = torch.cat([world.gather(mine, count), self.queue.vectors(name)])
        return keys

    def losses(
        self, step: Step, rows: Tensor, inputs: Inputs, near: Neighbourhood, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """What the rows i64 [R], whose inputs and relations these are, add to the batch's mean of the named losses."""
        online = {name: self.module(name)(*inputs[name]) for name in self.online.names}
        step.online.append((rows, {name: vectors.detach() for name, vectors in online.items()}))
        with torch.autocast(rows.device.type, enabled=False):
            return self._contrast(step, rows, online, near, names)

    def _contrast(
        self, step: Step, rows: Tensor, online: dict[str, Tensor], near: Neighbourhood, names: Sequence[str]
    ) -> dict[str, Tensor]:
        targets = Targets(self._config.targets, step.alpha, self._config.positives)
        relations = Relations(
            near.same, near.related, step.columns >= 0, rows, step.partner[rows], batch=len(step.tracks)
        )
        momentum = {name: keys[rows] for name, keys in step.keys.items()}
        sides = self.sides[self._config.sides]
        found = Similar.of(online, momentum, step.keys, self.online.temperature, sides, targets)
        out = {}
        if "wtc" in names:
            out["wtc"] = wtc(found, relations, self.sides["cross"], targets).sum() / len(step.tracks)
        if "ttc" in names:
            values = ttc(found, relations, sides, targets)
            out["ttc"] = values.sum() / (step.partner >= 0).sum().clamp(min=1)
        if "tpc" in names:
            playlists = self._playlists(step, rows, near, online, targets)
            values = tpc(found, relations, playlists, sides, targets)
            out["tpc"] = values.sum() / step.there.sum().clamp(min=1)
        return out

    def _playlists(
        self, step: Step, rows: Tensor, near: Neighbourhood, online: dict[str, Tensor], targets: Targets
    ) -> PlaylistRows:
        present, seeds = step.seeds >= 0, step.seeds.clamp(min=0)
        tables = {name: self.table(name)[seeds] for name in self.online.names}
        with torch.no_grad():
            keys = {name: self.twins["fusion"](vectors, present) for name, vectors in tables.items()}
        fused = {name: self.fusion(vectors[rows], present[rows]) for name, vectors in tables.items()}
        momentum = {name: vectors[rows] for name, vectors in keys.items()}
        of_track = {name: vectors[rows] for name, vectors in step.keys.items()}
        temperature, sides = self.online.temperature, self.sides[self._config.sides]
        return PlaylistRows(
            Similar.of(fused, momentum, step.keys, temperature, sides, targets),
            Similar.of(online, of_track, keys, temperature, sides, targets),
            holds=near.holds,
            held=near.held,
            there=step.there,
        )

    def after_step(self, step: Step, world: World) -> None:
        """Let the momentum copies follow, put the keys into the queue and the new vectors into the tables."""
        for name in self.online.names:
            follow(self.twins[name], self.module(name), self._config.momentum)
        follow(self.twins["fusion"], self.fusion, self._config.momentum)
        batch = len(step.tracks)
        self.queue.push({name: keys[:batch] for name, keys in step.keys.items()}, step.tracks)
        order = torch.cat([rows for rows, _ in step.online]).argsort()
        for name in self.online.names:
            mine = torch.cat([vectors[name] for _, vectors in step.online])[order]
            self.remember(name, world.gather(mine, batch), step.tracks)
        self.online.clamp_temperature()

    @torch.no_grad()
    def remember(self, name: str, vectors: Tensor, tracks: Tensor) -> None:
        """Put vectors f32 [B, d] of tracks i64 [B] into a table; of a track that stands twice the last one stays.

        Writing both would leave to the threads which one does, and no run could be repeated.
        """
        unique, inverse = tracks.unique(return_inverse=True)
        places = torch.arange(len(tracks), device=tracks.device)
        last = torch.zeros_like(unique).scatter_reduce_(0, inverse, places, "amax", include_self=False)
        self.table(name)[unique] = vectors[last].to(self.table(name).dtype)


def sides_of(names: Sequence[str]) -> dict[str, list[Side]]:
    """The (query, key) towers to contrast: "cross" as in the paper, "all" with each tower against itself too."""
    cross = [(one, other) for one in names for other in names if one != other]
    own = [(name, name) for name in names]
    return {"cross": cross or own, "all": [*cross, *own]}
