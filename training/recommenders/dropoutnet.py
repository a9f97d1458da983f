"""DropoutNet (Volkovs, Yu, Poutanen 2017; LARP, Eq. 27-28): content learns to say what collaborative vectors said.

Two towers read [content | collaborative vector] of a playlist and of a track; their inner product is fitted to that of
the collaborative vectors alone. Some collaborative vectors are withheld in training, all of them from cold tracks.

What the paper leaves open and plain SGD at its rate needs in order to learn: content is centred and scaled to entries
of mean square one (unit vectors of 256 have entries of 1/16), a collaborative vector likewise, so that a withheld
one, zeros, is the training mean of Eq. 27; the target is standardised, an affine map that changes no ranking; hidden
layers are normalised before tanh. The paper's L2 of 0.1, as SGD's weight decay, at first learns fastest and then, over
a few hundred steps more, shrinks both towers to zero; 0.03 does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from training.hardware import reproducible
from training.progress import Progress
from training.recommenders.fitting import FitConfig, Rows, apply, optimise
from training.recommenders.interactions import Interactions, Scale
from training.recommenders.recommender import Content, Validate
from training.recommenders.wmf import factorise


@dataclass(frozen=True)
class DropoutNetConfig(FitConfig):
    """How DropoutNet is fitted; defaults are the paper's (appendix B.2) where it has one.

    l2 weighs the squared weights of the towers (SGD's weight decay; the paper: 0.1, see above). Raises ValueError for
    a value outside its range.
    """

    dims: int = 256
    hidden: tuple[int, ...] = (512, 256)
    lr: float = 0.005
    l2: float = 0.03
    momentum: float = 0.9
    """SGD's momentum."""
    cf_dims: int = 64
    """Length of the collaborative vectors."""
    cf_dropout: float = 0.2
    """Share of rows whose collaborative vector is withheld, of playlists and of tracks."""
    cf_l2: float = 0.1
    """L2 of the factorisation."""
    cf_confidence: float = 40.0
    """Weight of an entry in the factorisation against 1 of an absent one (Hu et al.'s; the paper names none)."""
    cf_iterations: int = 15
    """Rounds of the factorisation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "cf_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0 and 1, not {getattr(self, name)}")
        if min(self.cf_dims, self.cf_confidence, self.cf_iterations) < 1 or not self.cf_l2 >= 0:
            raise ValueError("cf_dims, cf_confidence and cf_iterations must be at least 1, cf_l2 not negative")


def block_loss(playlists: Tensor, tracks: Tensor, target: Tensor) -> Tensor:
    """Mean of (playlists @ tracks.T - target)^2: [B, k], [C, k], [B, C] -> scalar."""
    return (playlists @ tracks.T - target).square().mean()


class DropoutNet(nn.Module):
    """The two towers and the scale of the content they read: a fitted recommender."""

    def __init__(self, scale: Scale, config: DropoutNetConfig) -> None:
        super().__init__()
        self.scale, self.cf_dims = scale, config.cf_dims
        width = len(scale.centre) + config.cf_dims
        self.playlist_tower = _tower(width, config.hidden, config.dims)
        self.track_tower = _tower(width, config.hidden, config.dims)

    def transform_tracks(self, vectors: Content) -> Content:
        """f_s(content | mean collaborative vector) of Eq. 28: f32 [n, d] -> f32 [n, dims]; NaN rows stay."""
        return apply(self.track_tower, self._cold(vectors))

    def transform_playlists(self, means: Content) -> Content:
        """f_p(mean content | mean collaborative vector) of Eq. 28: f32 [q, d] -> f32 [q, dims]."""
        return apply(self.playlist_tower, self._cold(means))

    def _cold(self, vectors: Content) -> Content:
        return np.concatenate([self.scale(vectors), np.zeros((len(vectors), self.cf_dims), np.float32)], 1)


def _tower(width: int, hidden: Sequence[int], dims: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise((width, *hidden)):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], dims))


class _Task:
    name = "DropoutNet"

    def __init__(self, data: Interactions, config: DropoutNetConfig) -> None:
        factors = factorise(
            data.matrix,
            config.cf_dims,
            confidence=config.cf_confidence,
            l2=config.cf_l2,
            iterations=config.cf_iterations,
            threads=config.threads,
            seed=config.seed,
        )
        content = Scale.of(data.content)
        self._cf_dropout = config.cf_dropout
        self._content = [torch.from_numpy(content(rows)) for rows in (data.means, data.content)]
        self._cf = [torch.from_numpy(Scale.of(rows)(rows)) for rows in factors]
        self._factors = [torch.from_numpy(rows) for rows in factors]
        self._mean, self._spread = _moments(factors, data, config.seed)
        self.model = DropoutNet(content, config)
        self.optimisers = [
            torch.optim.SGD(self.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.l2)
        ]

    def loss(self, playlist: Rows, track: Rows, rng: np.random.Generator) -> Tensor:
        """MSE over all pairs of the batch's playlists and tracks: some are entries, most are not."""
        of_playlists, of_tracks = self._factors[0][playlist], self._factors[1][track]
        target = (of_playlists @ of_tracks.T - self._mean) / self._spread
        return block_loss(
            self.model.playlist_tower(self._input(0, playlist, rng)),
            self.model.track_tower(self._input(1, track, rng)),
            target,
        )

    def _input(self, side: int, rows: Rows, rng: np.random.Generator) -> Tensor:
        kept = torch.from_numpy(rng.random(len(rows)) >= self._cf_dropout)
        return torch.cat([self._content[side][rows], self._cf[side][rows] * kept[:, None]], 1)


def _moments(
    factors: tuple[NDArray[np.float32], NDArray[np.float32]], data: Interactions, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of the target over pairs as the batches draw them."""
    entries = np.random.default_rng(seed).permutation(len(data.track))[:2000]
    target = factors[0][data.playlist[entries]] @ factors[1][data.track[entries]].T
    return float(target.mean()), max(float(target.std()), 1e-6)


def fit_dropoutnet(
    playlists: sparse.csr_array,
    vectors: Content,
    progress: Progress,
    config: DropoutNetConfig | None = None,
    *,
    validate: Validate | None = None,
) -> DropoutNet:
    """Fit on TRAINING entries `playlists` [P, N] and content `vectors` f32 [N, d], NaN rows where missing.

    With `validate` the best epoch is kept. The same seed and threads give the same towers. Raises RecommenderError for
    fewer than two playlists or tracks to learn from, TrainingError when the loss stops being finite.
    """
    config = config or DropoutNetConfig()
    data = Interactions.of(playlists, vectors)
    with reproducible(config.seed, config.threads):
        task = _Task(data, config)
        optimise(task, data, config, progress, validate)
    return task.model
