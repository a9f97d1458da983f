"""CLCRec (Wei et al. 2021; LARP, Eq. 29-30): content is pulled to the vectors that collaborative filtering learns.

Every training playlist and track has a vector z, and g maps content to their space. Two InfoNCE losses with the other
tracks of the batch as negatives: z_track with g(its content), by cosine, and z_playlist with z_track or, for a random
half of the tracks, g(content), by inner product, which is how continuations are ranked. Cold tracks have g alone.

What the paper leaves open: content is centred and scaled to entries of mean square one, without which g learns hardly
anything in the given epochs; a playlist's own tracks are no negatives for it.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from training.hardware import reproducible
from training.progress import Progress
from training.recommenders.fitting import FitConfig, Rows, apply, optimise
from training.recommenders.interactions import Interactions, Scale
from training.recommenders.recommender import Content, Validate

_FIRST = 0.1  # standard deviation of z at the start


@dataclass(frozen=True)
class ClcRecConfig(FitConfig):
    """How CLCRec is fitted; defaults are the paper's (appendix B.3) where it has one.

    l2 weighs the mean squared length of the batch's z. Raises ValueError for a value outside its range.
    """

    temperature: float = 2.0
    """tau of both losses."""
    replaced: float = 0.5
    """Probability that the playlist loss sees a track's content in place of its z."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if not 0 <= self.replaced <= 1:
            raise ValueError(f"replaced must be within 0 and 1, not {self.replaced}")


def info_nce(anchors: Tensor, keys: Tensor, barred: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax(anchor_i . keys / temperature)_i over the keys that are not barred for the anchor.

    [B, k], [B, k], bool [B, B] (False on the diagonal: key i is anchor i's positive) -> scalar.
    """
    logits = (anchors @ keys.T / temperature).masked_fill(barred, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(anchors)))


class ClcRec(nn.Module):
    """z of playlists and tracks, g, and the scale of the content it reads: a fitted recommender by g alone."""

    def __init__(self, scale: Scale, playlists: int, tracks: int, config: ClcRecConfig) -> None:
        super().__init__()
        self.scale = scale
        widths = (len(scale.centre), *config.hidden)
        hidden = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.LeakyReLU())]
        self.g = nn.Sequential(*hidden, nn.Linear(widths[-1], config.dims))
        # Sparse gradients: a step touches the batch's rows, not all of a large catalogue's.
        self.playlists = nn.Embedding(playlists, config.dims, sparse=True)
        self.tracks = nn.Embedding(tracks, config.dims, sparse=True)
        for table in (self.playlists, self.tracks):
            nn.init.normal_(table.weight, std=_FIRST)

    def transform_tracks(self, vectors: Content) -> Content:
        """g(content) of Eq. 30: f32 [n, d] -> f32 [n, dims]; NaN rows stay."""
        return apply(self.g, self.scale(vectors))

    def transform_playlists(self, means: Content) -> Content:
        """g(mean content) of Eq. 30: f32 [q, d] -> f32 [q, dims]."""
        return self.transform_tracks(means)


class _Task:
    name = "CLCRec"

    def __init__(self, data: Interactions, config: ClcRecConfig) -> None:
        scale = Scale.of(data.content)
        self._data, self._config = data, config
        self._content = torch.from_numpy(scale(data.content))
        self.model = ClcRec(scale, *data.matrix.shape, config)
        tables = [self.model.playlists.weight, self.model.tracks.weight]
        self.optimisers = [
            torch.optim.Adam(self.model.g.parameters(), lr=config.lr),
            torch.optim.SparseAdam(tables, lr=config.lr),
        ]

    def loss(self, playlist: Rows, track: Rows, rng: np.random.Generator) -> Tensor:
        """Both InfoNCE losses and the L2 term of a batch of training entries."""
        model, config = self.model, self._config
        of_playlists = model.playlists(torch.from_numpy(playlist))
        of_tracks, content = model.tracks(torch.from_numpy(track)), model.g(self._content[track])
        other = ~np.eye(len(track), dtype=bool)
        twins = torch.from_numpy((track[:, None] == track[None, :]) & other)
        members = torch.from_numpy(self._data.holds(playlist, track) & other)
        replaced = torch.from_numpy(rng.random(len(track)) < config.replaced)[:, None]
        mixed = torch.where(replaced, content, of_tracks)
        lengths = of_playlists.square().sum(1).mean() + of_tracks.square().sum(1).mean()
        unit = functional.normalize
        return (
            info_nce(unit(of_tracks), unit(content), twins, config.temperature)
            + info_nce(of_playlists, mixed, members, config.temperature)
            + config.l2 / 2 * lengths
        )


def fit_clcrec(
    playlists: sparse.csr_array,
    vectors: Content,
    progress: Progress,
    config: ClcRecConfig | None = None,
    *,
    validate: Validate | None = None,
) -> ClcRec:
    """Fit on TRAINING entries `playlists` [P, N] and content `vectors` f32 [N, d], NaN rows where missing.

    With `validate` the best epoch is kept: many epochs forget what content can say of new tracks. The same seed and
    threads give the same weights. Raises RecommenderError for fewer than two playlists or tracks to learn from,
    TrainingError when the loss stops being finite.
    """
    config = config or ClcRecConfig()
    data = Interactions.of(playlists, vectors)
    with reproducible(config.seed, config.threads):
        task = _Task(data, config)
        optimise(task, data, config, progress, validate)
    return task.model
