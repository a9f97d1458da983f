"""The losses of BCL: BPR or a sampled softmax on co-listening pairs, NT-Xent between the two views of an item."""

import torch
from torch import Tensor
from torch.nn import functional as F


def bpr(anchor: Tensor, positive: Tensor, negative: Tensor, temperature: Tensor | float) -> Tensor:
    """Return L_s = -mean log sigmoid((<z_i, z_j> - <z_i, z_k>) / tau_s), a scalar.

    `anchor` and `positive` [B, d], `negative` [B, M, d], all unit vectors; the mean is over B and M.
    """
    near = (anchor * positive).sum(-1, keepdim=True)
    far = torch.einsum("bd,bmd->bm", anchor, negative)
    return -F.logsigmoid((near - far) / temperature).mean()


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return L_c, the InfoNCE loss between two views of the same items, a scalar.

        L_c = -1/(2B) sum_i log( exp(<p_i, p_i'> / tau) / sum_{k != i} exp(<p_i, p_k> / tau) )

    over all 2B views: i' is the other view of i's item, k runs over all other views. `first` and `second` [B,
    d], unit.
    """
    views = torch.cat([first, second])
    logits = views @ views.T / temperature
    logits.fill_diagonal_(-torch.inf)
    other = torch.arange(len(views), device=views.device).roll(len(first))
    return F.cross_entropy(logits, other)


def sampled_softmax(
    anchor: Tensor,
    candidates: Tensor,
    target: Tensor,
    left_out: Tensor,
    log_share: Tensor,
    temperature: Tensor | float,
) -> Tensor:
    """Return the cross-entropy of each anchor's positive among sampled candidates, a scalar.

        L_s = -mean log( exp(l_it) / sum_{c not left out} exp(l_ic) ),  l_ic = <z_i, z_c> / tau_s - log q_c

    `anchor` [B, d] and `candidates` [C, d] are unit vectors, `target` int64 [B] the column of the positive,
    `left_out` bool [B, C] what is no negative of the anchor. `log_share` [C] is log q_c, q_c the chance that c
    was sampled: without it what is sampled often would be pushed away for that alone (Bengio and Senecal, 2008).
    """
    logits = anchor @ candidates.T / temperature - log_share
    own = torch.zeros_like(left_out).scatter_(1, target[:, None], True)
    return F.cross_entropy(logits.masked_fill(left_out & ~own, -torch.inf), target)
