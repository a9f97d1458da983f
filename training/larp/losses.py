"""LARP's three contrastive losses (Eq. 1-9, 13-25) with multi-hot targets.

In every loss a query meets keys; each key is a positive, a negative, or ignored. All positives share the
target's mass evenly, so the cross entropy is the mean over positives of -log softmax. With "related" for
another track that shares a playlist with the query's:

    loss            positive                        ignored
    WTC             the track itself                related tracks
    TTC             related tracks                  the track itself
    TPC, playlist   tracks of the playlist          -
    TPC, track      playlists that hold the track   the track itself, related tracks

Queue columns that are still empty are ignored everywhere. Call these outside autocast: they want float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """What the queries of a step meet: momentum vectors of the batch, then the queue. f32 [K, d] each."""

    audio: Tensor
    text: Tensor


@dataclass(frozen=True)
class Relations:
    """How the B tracks of the batch stand to the K key columns; bool [B, K].

    same: the column is the track. related: the column is another track and shares a playlist with it. filled:
    the column holds a vector, bool [K].
    """

    same: Tensor
    related: Tensor
    filled: Tensor


def cross_entropy(logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """Mean over positives of -log softmax over all columns that are not ignored.

    logits f32 [B, K]; positive and ignored bool [B, K], a column that is both is ignored. f32 [B]; 0 for a
    row without positives.
    """
    logits = logits.masked_fill(ignored, float("-inf"))
    positive = positive & ~ignored
    count = positive.sum(1)
    rows = count > 0
    log_share = torch.where(positive, logits, 0.0).sum(1) / count.clamp(min=1)
    total = torch.where(rows[:, None], logits, 0.0).logsumexp(1)
    return torch.where(rows, total - log_share, 0.0)


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of f32 [B] over the chosen rows, bool [B]; 0 when there are none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


def wtc(audio: Tensor, text: Tensor, keys: Keys, relations: Relations, temperature: Tensor) -> Tensor:
    """Within-track contrast (Eq. 1, 13-15): a_i finds t_i and t_i finds a_i. audio, text f32 [B, d]."""
    ignored = relations.related | ~relations.filled
    a2t = cross_entropy(audio @ keys.text.T / temperature, relations.same, ignored)
    t2a = cross_entropy(text @ keys.audio.T / temperature, relations.same, ignored)
    return ((a2t + t2a) / 2).mean()


def ttc(audio: Tensor, text: Tensor, keys: Keys, relations: Relations, partner: Tensor, temperature: Tensor) -> Tensor:
    """Track-track contrast across towers (Eq. 4, 16-19) for pairs (i, partner[i]) that share a playlist.

    partner i64 [B]: place in the batch, -1 for none; tracks without one do not count.
    """
    ignored = relations.same | ~relations.filled
    a2t = cross_entropy(audio @ keys.text.T / temperature, relations.related, ignored)
    t2a = cross_entropy(text @ keys.audio.T / temperature, relations.related, ignored)
    contrast_at = (a2t + t2a[partner]) / 2  # Contrast(a_i, t_j)
    contrast_ta = (t2a + a2t[partner]) / 2  # Contrast(t_i, a_j)
    return mean_over((contrast_at + contrast_ta) / 2, partner >= 0)


@dataclass(frozen=True)
class PlaylistSide:
    """The playlists of a batch: row i stands for the playlist p_i that track i was drawn with.

    audio, text f32 [B, d]: fused from the latest track vectors. key_audio, key_text f32 [B, d]: the same by
    the momentum fusion. holds bool [B, K]: key column k is a track of p_i. held bool [B, B]: track i is in
    p_j. there bool [B]: p_i exists and has another track.
    """

    audio: Tensor
    text: Tensor
    key_audio: Tensor
    key_text: Tensor
    holds: Tensor
    held: Tensor
    there: Tensor


def tpc(
    audio: Tensor,
    text: Tensor,
    playlists: PlaylistSide,
    keys: Keys,
    relations: Relations,
    temperature: Tensor,
) -> Tensor:
    """Track-playlist contrast (Eq. 5, 20-25): a_p with t_i and t_p with a_i, both directions.

    A playlist meets the tracks' keys; a track meets the playlists of the batch and the tracks in the queue
    (the columns of `keys` behind the batch).
    """
    batch = len(audio)
    empty = ~relations.filled.expand(batch, -1)
    p2t = cross_entropy(playlists.audio @ keys.text.T / temperature, playlists.holds, empty)
    p2a = cross_entropy(playlists.text @ keys.audio.T / temperature, playlists.holds, empty)

    queued = relations.same | relations.related | empty
    ignored = torch.cat([~playlists.there.expand(batch, -1), queued[:, batch:]], 1)
    positive = torch.cat([playlists.held, torch.zeros_like(queued[:, batch:])], 1)
    audio_side = torch.cat([playlists.key_audio, keys.audio[batch:]])
    text_side = torch.cat([playlists.key_text, keys.text[batch:]])
    t2p = cross_entropy(text @ audio_side.T / temperature, positive, ignored)
    a2p = cross_entropy(audio @ text_side.T / temperature, positive, ignored)

    contrast_pt = (p2t + t2p) / 2  # Contrast(a_p, t_i)
    contrast_pa = (p2a + a2p) / 2  # Contrast(t_p, a_i)
    return mean_over((contrast_pt + contrast_pa) / 2, playlists.there)
