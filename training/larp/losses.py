"""LARP's three contrastive losses (Eq. 1-9, 13-25): rows of queries meet columns of keys.

A side is (query tower, key tower). The paper's two sides are audio -> text and text -> audio; a model of one tower
has the one side text -> text (or audio -> audio). Each column is a positive, a negative, or ignored:

    loss            multi: positive                ignored               diagonal: positive, all else is negative
    WTC             the track itself               related tracks        the track's own column
    TTC             related tracks                 the track itself      the partner's column
    TPC, playlist   tracks of the playlist         -                     the column of the row's track
    TPC, track      playlists that hold the track  the track itself,     the column of the row's playlist
                                                   related tracks

"Related" is another track that shares a playlist with the query's. `multi` reads the multi-hot Eq. 19 and 25, positives
sharing the target's mass evenly (or, with `positives` "sum", as they like: any of them may be the near one); `diagonal`
is how LARP's published code behaves. Columns still empty are ignored everywhere.

Each function gives one value a row, and the mean over the batch's rows is the paper's loss: summed over a batch of
pairs (i, j) that holds both (i, j) and (j, i), the four cross entropies of Eq. 16-17 are, row by row, the mean over
both sides. So rows can be encoded in parts and on several machines, and their losses simply add up.
Call these outside autocast: they want float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Side = tuple[str, str]
_BLOCK = 1 << 17  # similarities, half a megabyte
Vectors = Mapping[str, Tensor]
"""Unit vectors by tower, f32 [rows or columns, d] each."""


@dataclass(frozen=True)
class Relations:
    """How the R rows of queries stand to the K key columns; bool [R, K].

    same: the column is the track. related: the column is another track and shares a playlist with it. filled: the
    column holds a vector, bool [K]. own and partner i64 [R]: the column of the row's track and of its partner in the
    batch (-1: none). batch: how many columns are the batch; the others are the queue.
    """

    same: Tensor
    related: Tensor
    filled: Tensor
    own: Tensor
    partner: Tensor
    batch: int


@dataclass(frozen=True)
class Targets:
    """Which columns are positive, and how far the momentum model's own opinion is mixed in.

    kind: "multi" or "diagonal". distill: alpha of (1 - alpha) target + alpha softmax(momentum similarities), the soft
    targets of LARP's published code. positives: "mean" over them of -log share, or -log of the "sum" of their shares.
    """

    kind: str = "multi"
    distill: float = 0.0
    positives: str = "mean"


@dataclass(frozen=True)
class Similar:
    """Cosines over the temperature by side, f32 [R, K]: of the rows, and of the rows' momentum vectors (only where
    targets are distilled). Made once a step, since all losses read them.
    """

    logits: Mapping[Side, Tensor]
    opinion: Mapping[Side, Tensor]

    @classmethod
    def of(
        cls,
        queries: Vectors,
        momentum: Vectors,
        keys: Vectors,
        temperature: Tensor,
        sides: Sequence[Side],
        targets: Targets,
    ) -> "Similar":
        """Compare queries [R, d] with keys [K, d]; `momentum`: the rows' own vectors by the momentum model."""
        # The queries are divided, not the products: those are K / d times as many numbers, in each direction.
        logits = {side: queries[side[0]] / temperature @ keys[side[1]].T for side in sides}
        if not targets.distill:
            return cls(logits, {})
        with torch.no_grad():
            return cls(logits, {side: momentum[side[0]] / temperature @ keys[side[1]].T for side in sides})

    def behind(self, first: int, before: "Similar") -> "Similar":
        """The columns of `before`, then these from number `first` on."""
        return Similar(
            {side: torch.cat([before.logits[side], found[:, first:]], 1) for side, found in self.logits.items()},
            {side: torch.cat([before.opinion[side], found[:, first:]], 1) for side, found in self.opinion.items()},
        )


@dataclass(frozen=True)
class PlaylistRows:
    """The playlists of R rows (row i stands for the playlist p_i its track was drawn with) and of the batch.

    to_tracks: the rows' fused playlists against the key columns, [R, K]. to_playlists: the rows' tracks against the
    playlists of the batch by the momentum fusion, [R, B]. holds bool [R, K]: key column k is a track of p_i. held bool
    [R, B]: track i is in p_j. there bool [B]: p_j exists and has another track.
    """

    to_tracks: Similar
    to_playlists: Similar
    holds: Tensor
    held: Tensor
    there: Tensor


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy` in half the passes over [R, K] that its parts would take: its gradient is softmax - target, where
    the target is even over the positives, or, with their sum, their own softmax. Rows are taken in blocks that stay in
    a CPU's cache from one pass to the next.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Tensor, ignored: Tensor, summed: bool) -> Tensor:
        size = len(logits) if logits.is_cuda else max(1, _BLOCK // max(1, logits.shape[1]))
        slope = torch.empty_like(logits)
        blocks = zip(*(each.split(size) for each in (logits, positive, ignored, slope)), strict=True)
        found = [_of_rows(*block, summed) for block in blocks]
        value, rows = (torch.cat(each) for each in zip(*found, strict=True))
        ctx.save_for_backward(slope, rows)
        return torch.where(rows, value, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        slope, rows = ctx.saved_tensors
        return slope * torch.where(rows, gradients[0], 0.0)[:, None], None, None, None


def _of_rows(logits: Tensor, positive: Tensor, ignored: Tensor, slope: Tensor, summed: bool) -> tuple[Tensor, Tensor]:
    """The cross entropies [R] and which rows have positives; `slope` [R, K] becomes the gradients."""
    positive = positive & ~ignored
    count = positive.sum(1)
    slope.copy_(logits).masked_fill_(ignored, float("-inf"))
    top = slope.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    slope.sub_(top).exp_()
    total = slope.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    if summed:
        target, reached = _softmax_of(logits, positive)
    else:
        target = positive.to(logits.dtype).div_(count.clamp(min=1)[:, None])
        reached = torch.linalg.vecdot(target, logits)
    slope.div_(total).sub_(target)
    return top[:, 0] + total[:, 0].log() - reached, count > 0


def _softmax_of(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the positives alone [R, K] and its log of the sum [R]; their own maximum is taken off, for far
    behind another column they would all underflow.
    """
    share = logits.masked_fill(~positive, float("-inf"))
    top = share.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    share = share.sub_(top).exp_()
    total = share.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    return share.div_(total), (top + total.log())[:, 0]


def cross_entropy(logits: Tensor, positive: Tensor, ignored: Tensor, positives: str = "mean") -> Tensor:
    """Mean over positives of -log softmax over all columns that are not ignored, or, with positives="sum", -log of the
    sum of their softmax.

    logits f32 [R, K]; positive and ignored bool [R, K], a column that is both is ignored. f32 [R]; 0 for a row without
    positives. Differentiable once.
    """
    value: Tensor = _CrossEntropy.apply(logits, positive, ignored, positives == "sum")
    return value


def soft_cross_entropy(logits: Tensor, opinion: Tensor, ignored: Tensor) -> Tensor:
    """-sum_k q_k log softmax_k(logits), q = softmax(opinion), both over the columns not ignored; f32 [R]."""
    empty = ignored.all(1, keepdim=True)
    closed = ignored & ~empty
    log_share = logits.masked_fill(closed, float("-inf")).log_softmax(1).masked_fill(ignored, 0.0)
    weight = opinion.masked_fill(closed, float("-inf")).softmax(1).masked_fill(ignored, 0.0)
    return -(weight * log_share).sum(1)


def wtc(found: Similar, relations: Relations, sides: Sequence[Side], targets: Targets) -> Tensor:
    """Within-track contrast (Eq. 1, 13-15): a_i finds t_i and t_i finds a_i. f32 [R]."""
    if targets.kind == "multi":
        positive, ignored = relations.same, relations.related | ~relations.filled
    else:
        positive, ignored = _at(relations.own, relations.same), ~relations.filled.expand_as(relations.same)
    return _contrast(found, positive, ignored, sides, targets)


def ttc(found: Similar, relations: Relations, sides: Sequence[Side], targets: Targets) -> Tensor:
    """Track-track contrast (Eq. 4, 16-19) for pairs that share a playlist; 0 for rows without a partner. f32 [R]."""
    if targets.kind == "multi":
        positive, ignored = relations.related, relations.same | ~relations.filled
    else:
        positive, ignored = _at(relations.partner, relations.same), ~relations.filled.expand_as(relations.same)
    return torch.where(relations.partner >= 0, _contrast(found, positive, ignored, sides, targets), 0.0)


def tpc(
    found: Similar, relations: Relations, playlists: PlaylistRows, sides: Sequence[Side], targets: Targets
) -> Tensor:
    """Track-playlist contrast (Eq. 5, 20-25): a_p with t_i and t_p with a_i, both directions. f32 [R].

    A playlist meets the tracks' keys; a track meets the playlists of the batch and the tracks in the queue (the columns
    of `found` behind the batch). 0 for rows without a playlist.
    """
    batch = relations.batch
    empty = ~relations.filled.expand_as(relations.same)
    absent = ~playlists.there.expand(len(relations.own), -1)
    if targets.kind == "multi":
        of_playlist, of_track = playlists.holds, playlists.held
        queued = relations.same[:, batch:] | relations.related[:, batch:] | empty[:, batch:]
    else:
        of_playlist, of_track = _at(relations.own, relations.same), _at(relations.own, playlists.held)
        queued = empty[:, batch:]
    to_tracks = _contrast(playlists.to_tracks, of_playlist, empty, sides, targets)
    of_track = torch.cat([of_track, torch.zeros_like(queued)], 1)
    both = found.behind(batch, playlists.to_playlists)
    to_playlists = _contrast(both, of_track, torch.cat([absent, queued], 1), sides, targets)
    # A row's playlist is where its track is: the row's own column of `there`.
    return torch.where(playlists.there[relations.own], (to_tracks + to_playlists) / 2, 0.0)


def _contrast(found: Similar, positive: Tensor, ignored: Tensor, sides: Sequence[Side], targets: Targets) -> Tensor:
    """Mean over the sides of the cross entropies of f32 [R, K] similarities."""
    rows = []
    for side in sides:
        value = cross_entropy(found.logits[side], positive, ignored, targets.positives)
        if targets.distill:
            soft = soft_cross_entropy(found.logits[side], found.opinion[side], ignored)
            known = (positive & ~ignored).any(1)
            value = (1 - targets.distill) * value + targets.distill * torch.where(known, soft, 0.0)
        rows.append(value)
    return torch.stack(rows).mean(0)


def _at(columns: Tensor, like: Tensor) -> Tensor:
    """bool [R, K] shaped as `like`, true at each row's column (-1: nowhere)."""
    found = torch.zeros_like(like)
    rows = torch.arange(len(columns), device=columns.device)
    found[rows, columns.clamp(min=0)] = columns >= 0
    return found
