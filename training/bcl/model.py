"""The BCL encoder: fields of a track -> field embeddings -> a unit vector in the matching space.

z = l2(MLP(concat_f LayerNorm(e_f))); the projection head behind it serves the contrastive loss only. A release's
vectors are z and the fitted content vector c side by side.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from index.models.fields import FieldSet, Kind
from training.bcl.config import CONTENT_SHARE, BclConfig
from training.bcl.content import Content

Inputs = Mapping[str, Tensor]
"""The arrays of `FieldSet.transform` as tensors, [B, ...] each."""


COLDEST, WARMEST = 0.01, 1.0  # tau_s

# Which input a kind of field is made unknown in.
_KIND_OF: dict[str, Kind] = {
    "categorical": "categorical",
    "multi": "multi",
    "numeric_known": "numeric",
    "dense_known": "dense",
}


class FieldEmbedding(nn.Module):
    """Each field of a track as a vector e_f of one length; what is unknown has a learned vector of its own.

    Categorical: a table, row 0 = unknown. Multi-valued: the mean of its values' rows, row 0 when there are
    none. Numeric: x w + b. Dense: each block of the vector as it is.
    """

    def __init__(self, fields: FieldSet, dims: int) -> None:
        super().__init__()
        self.categorical = nn.ModuleList(_table(size, dims) for size in fields.sizes("categorical"))
        self.multi = nn.ModuleList(_table(size, dims) for size in fields.sizes("multi"))
        numeric = len(fields.of("numeric"))
        dense = len(fields.groups) - len(self.categorical) - len(self.multi) - numeric
        self.slope, self.offset = _vectors(numeric, dims), _vectors(numeric, dims)
        self.numeric_unknown, self.dense_unknown = _vectors(numeric, dims), _vectors(dense, dims)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return the field embeddings [B, F, dims], fields in the order of `FieldSet.groups`."""
        parts = []
        if self.categorical:
            ids = inputs["categorical"]
            parts += [table(ids[:, i]) for i, table in enumerate(self.categorical)]
        if self.multi:
            ids = inputs["multi"]
            parts += [_mean_of_values(table, ids[:, i]) for i, table in enumerate(self.multi)]
        out = [torch.stack(parts, 1)] if parts else []
        if len(self.slope):
            known = inputs["numeric_known"].unsqueeze(2)
            line = inputs["numeric"].unsqueeze(2) * self.slope + self.offset
            out.append(known * line + (1 - known) * self.numeric_unknown)
        if len(self.dense_unknown):
            known = inputs["dense_known"].unsqueeze(2)
            out.append(known * inputs["dense"] + (1 - known) * self.dense_unknown)
        return torch.cat(out, 1)


class Bcl(nn.Module):
    """The model: `fields` it reads, `config` it was built by."""

    def __init__(self, fields: FieldSet, config: BclConfig) -> None:
        super().__init__()
        self.fields, self.config = fields, config
        count, dims = len(fields.groups), config.field_dims
        self.embedding = FieldEmbedding(fields, dims)
        self.norm_weight, self.norm_bias = (
            nn.Parameter(torch.ones(count, dims)),
            nn.Parameter(torch.zeros(count, dims)),
        )
        self.mask = nn.Parameter(0.02 * torch.randn(count, dims))
        widths = [count * dims, *config.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(config.dropout)]
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], config.dims))
        self.projection = nn.Sequential(
            nn.Linear(config.dims, config.dims), nn.GELU(), nn.Linear(config.dims, config.projected)
        )
        self.log_temperature = nn.Parameter(torch.tensor(config.bpr_temperature).log())
        self.content = Content(fields, config.content_dims)

    def forward(self, inputs: Inputs) -> Tensor:
        """Return unit vectors z [B, dims] of tracks: what is trained."""
        return self.encode(self.normalised(self.embedding(inputs)))

    def matching(self, inputs: Inputs) -> Tensor:
        """Return what a release holds, unit vectors [B, dims + content_dims]: l2([sqrt(1 - s) z, sqrt(s) c]).

        The cosine of two tracks is (1 - s) z.z' + s c.c', s = content_share; where a track says nothing of itself, z
        is all there is.
        """
        if not self.config.content_dims:
            return self(inputs)
        share = CONTENT_SHARE if self.config.content_share is None else self.config.content_share
        both = (math.sqrt(1 - share) * self(inputs), math.sqrt(share) * self.content(inputs))
        return F.normalize(torch.cat(both, 1), dim=1)

    def normalised(self, embeddings: Tensor) -> Tensor:
        """Return LayerNorm(e_f), with a scale and shift of its own for each field: [B, F, d] -> [B, F, d]."""
        return F.layer_norm(embeddings, embeddings.shape[-1:]) * self.norm_weight + self.norm_bias

    def encode(self, view: Tensor) -> Tensor:
        """Return z [B, dims] of normalised field embeddings [B, F, d] (or flat, [B, F d])."""
        return F.normalize(self.mlp(view.flatten(1)), dim=-1)

    def project(self, vectors: Tensor) -> Tensor:
        """Return unit vectors p [B, projected] for the contrastive loss."""
        return F.normalize(self.projection(vectors), dim=-1)

    @property
    def temperature(self) -> Tensor:
        """tau_s of the supervised loss."""
        return self.log_temperature.exp()

    def keep_temperature(self) -> None:
        """Bring tau_s back into 0.01..1: the parameter itself, so that its gradient never vanishes at an end."""
        with torch.no_grad():
            self.log_temperature.clamp_(math.log(COLDEST), math.log(WARMEST))


def forget(inputs: Inputs, fields: FieldSet, rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the inputs with a share `rate` of each track's fields made unknown (a dense vector whole)."""
    out = dict(inputs)
    for name, kind in _KIND_OF.items():
        if name in out:
            known = torch.rand((len(out[name]), len(fields.of(kind))), generator=generator) >= rate
            if kind == "dense":
                blocks = [fields.widths[spec.name] // spec.block for spec in fields.of(kind)]
                known = known.repeat_interleave(torch.tensor(blocks), 1)
            known = known.to(out[name].device)
            out[name] = out[name] * (known.unsqueeze(2) if kind == "multi" else known)
    return out


def _mean_of_values(table: nn.Embedding, ids: Tensor) -> Tensor:
    there = (ids > 0).to(table.weight.dtype).unsqueeze(2)
    count = there.sum(1)
    mean = (table(ids) * there).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, table.weight[0])


def _table(rows: int, dims: int) -> nn.Embedding:
    return nn.Embedding(rows, dims)


def _vectors(count: int, dims: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, dims))
