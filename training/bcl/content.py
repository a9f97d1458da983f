"""The content half of a matching vector: what a track says of itself, by latent semantic analysis of its fields.

x = [l2(tf-idf of the categorical and multi-valued fields), l2(each dense vector)], c = l2(V^T x), V the strongest right
singular vectors of the training tracks' x (Deerwester et al. 1990). BCL's z knows which tracks share listeners, c what
one listener keeps coming back to: together they find audiences better than either (docs/evidence.md).
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from index.models.fields import FieldSet

SAMPLE = 20_000
"""Training tracks that V is fitted on: its 128 directions need no more."""
FAINT = 1e-3
"""Length of V^T x below which the strongest directions say nothing of a track."""
_TINY = 1e-12


class Content(nn.Module):
    """c of a track: unit, or zero where its fields say nothing. Fitted, not trained, and saved with the model.

    Numeric fields are left out: two years are near by their difference, not by their product. A value v of a
    categorical or multi-valued field is a row idf(v) V_v of one table for all such fields, with idf(v)^2 beside it, so
    that the tf-idf is normalised without being written out. The row of "unknown" is zero.
    """

    values: Tensor
    """f32 [values, dims]: idf(v) V_v."""
    squares: Tensor
    """f32 [values]: idf(v)^2."""
    dense: Tensor
    """f32 [widths, dims]: V of the dense fields, one below the other."""

    def __init__(self, fields: FieldSet, dims: int) -> None:
        super().__init__()
        sizes = {kind: fields.sizes(kind) for kind in ("categorical", "multi")}
        starts = np.cumsum([0, *sizes["categorical"], *sizes["multi"]])
        self.starts = {"categorical": starts[: len(sizes["categorical"])].tolist()}
        self.starts["multi"] = starts[len(sizes["categorical"]) : -1].tolist()
        self.widths = [fields.widths[spec.name] for spec in fields.of("dense")]
        self.register_buffer("values", torch.zeros(int(starts[-1]), dims))
        self.register_buffer("squares", torch.zeros(int(starts[-1])))
        self.register_buffer("dense", torch.zeros(sum(self.widths), dims))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return c [B, dims] of the arrays of `FieldSet.transform`."""
        batch = next(iter(inputs.values())).shape[0]  # not len(): it would fix the exported batch
        found = self.values.new_zeros(batch, self.values.shape[1])
        if len(self.values):
            places = self._places(inputs)
            length = self.squares[places].sum(1, keepdim=True).clamp_min(_TINY).sqrt()
            found = self.values[places].sum(1) / length
        if self.widths:
            found = found + torch.cat(self._units(inputs), 1) @ self.dense
        length = found.norm(dim=1, keepdim=True)
        return torch.where(length > FAINT, found / length.clamp_min(FAINT), torch.zeros_like(found))

    def fit(self, inputs: Mapping[str, Tensor], rows: NDArray[np.int64], seed: int) -> None:
        """Learn idf and V from the (training) `rows` of `inputs`."""
        train = {name: array[torch.from_numpy(rows)] for name, array in inputs.items()}
        idf = np.zeros(len(self.values))
        parts = []
        if len(self.values):
            held = self._held(train)
            idf = np.log((1 + len(rows)) / (1 + np.asarray(held.sum(0)).ravel())) + 1  # as scikit-learn's
            idf[[*self.starts["categorical"], *self.starts["multi"]]] = 0.0
            parts.append(_unit(sparse.csr_array(held @ sparse.diags_array(idf))))
        parts += [sparse.csr_array(part.double().numpy()) for part in self._units(train)]
        if not parts or not self.values.shape[1]:
            return
        right = _right_singular(sparse.csr_array(sparse.hstack(parts)), self.values.shape[1], seed)
        self.values.copy_(torch.from_numpy(idf[:, None] * right[: len(idf)]))
        self.squares.copy_(torch.from_numpy(idf**2))
        self.dense.copy_(torch.from_numpy(right[len(idf) :]))

    def _places(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Rows of the table [B, n] that each track's values are; "unknown" is the first row of its field."""
        parts = []
        for kind, starts in self.starts.items():
            if starts:
                shape = (-1,) if kind == "categorical" else (-1, 1)
                first = torch.tensor(starts, device=inputs[kind].device).view(shape)
                places = inputs[kind] + first if any(starts) else inputs[kind]  # + 0 costs the export its input's name
                parts.append(places.flatten(1))
        return torch.cat(parts, 1)

    def _held(self, inputs: Mapping[str, Tensor]) -> sparse.csr_array:
        """Which values each track has, 0/1 [N, values]."""
        places = self._places(inputs).numpy()
        entries = (np.ones(places.size), (np.repeat(np.arange(len(places)), places.shape[1]), places.ravel()))
        held = sparse.csr_array(entries, shape=(len(places), len(self.values)))
        held.data[:] = 1.0  # paddings were added up
        held.data[np.isin(held.indices, [*self.starts["categorical"], *self.starts["multi"]])] = 0.0
        return held

    def _units(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The dense vectors, unit or zero, one [B, width] a field."""
        if not self.widths:
            return []
        return [F.normalize(part, dim=1, eps=_TINY) for part in inputs["dense"].flatten(1).split(self.widths, 1)]


def _right_singular(matrix: sparse.csr_array, dims: int, seed: int) -> NDArray[np.float64]:
    """Return V [columns, dims] of `matrix` [N, columns], zero columns behind where its rank is smaller."""
    rng = np.random.default_rng(seed)
    if matrix.shape[0] > SAMPLE:
        matrix = matrix[np.sort(rng.choice(matrix.shape[0], SAMPLE, replace=False))]
    count = min(dims, *matrix.shape)
    found = np.zeros((matrix.shape[1], dims))
    if not matrix.count_nonzero():  # nobody says anything, and ARPACK has nowhere to start
        return found
    # with more threads the last bits depend on how many there are; scikit-learn divides by a variance that may be 0
    with threadpool_limits(1, "blas"), np.errstate(divide="ignore", invalid="ignore"):
        if count == matrix.shape[1]:
            found[:, :count] = np.eye(count)
        elif count == matrix.shape[0]:
            found[:, :count] = np.linalg.svd(matrix.toarray(), full_matrices=False)[2].T
        else:
            model = TruncatedSVD(count, algorithm="arpack", random_state=int(rng.integers(2**31)))
            found[:, :count] = model.fit(matrix).components_.T
    return found


def _unit(rows: sparse.csr_array) -> sparse.csr_array:
    length = np.sqrt(np.asarray((rows**2).sum(1)).ravel())
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(length, _TINY)) @ rows)
