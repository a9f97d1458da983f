"""The answer that no model can beat by much: continuation by one who knows the factors and the themes.

Track i has the values x_i, theme k the values v_k over the factors f. A track is as welcome in a theme as

    W_i(k) = prod_f K_f(x_if, v_kf),     K_f(x, v) = 1 if x = v, else the tolerance of f,

and a playlist of theme k fills each place with a random track of the pool (the tracks of its split) with probability
o (the outlier share), else with one drawn by W. Against a pick at random (1 / N) a track is thus

    L_i(k) = (1 - o) W_i(k) / mean_pool W(k) + o

times as likely under theme k: a likelihood ratio with the outliers in it. With even prior odds of the T themes the
seeds S give the posterior P(k | S) = prod_{s in S} L_s(k) / sum_k' prod_{s in S} L_s(k'), and candidate c scores

    log sum_k P(k | S) L_c(k),

the logarithm of how many times likelier c is in this playlist than at random: Bayes' answer, but for places that are
drawn without replacement.

One who only hears (or only reads) knows the values of some factors, A, and takes for W what he expects it to be. The
values he knows tell of the others through the scene: the theme u that the track's artist leans to (see `world`), whose
value a factor has with probability h (the habit), else any of V:

    W_i(k) = prod_{f in A} K_f(x_if, v_kf)  sum_u P_i(u) prod_{f not in A} H_f(u, k)
    H_f(u, k) = h K_f(v_uf, v_kf) + (1 - h) mean_x K_f(x, v_kf)
    P_i(u) ~ prod_{f in A} (h [x_if = v_uf] + (1 - h) / V)

over the factors that matter. So the one-sided oracles bound what a model can do from sound alone, and from titles
alone. What the artist's name tells besides is not counted: where splits share artists, a text model that has learnt
their names may do a little better than "written", but no model does better than "all".
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from training.data.synthetic.config import Factor, WorldConfig
from training.evaluation.continuation import Scorer

Values = NDArray[np.int64]

KNOWLEDGE = ("all", "audible", "written")


class Oracle:
    """Knows a world's factors (F), values i64 [N, F] of tracks and [T, F] of themes, and pools i8 [N] (the splits)."""

    def __init__(
        self, config: WorldConfig, factors: Sequence[Factor], values: Values, themes: Values, pools: NDArray[np.int8]
    ) -> None:
        self._config = config
        self._factors = factors
        self._values, self._themes, self._pools = values, themes, pools

    def scorer(self, knowledge: str = "all") -> Scorer:
        """Return the scorer of one who knows "all" factors, the "audible" and shared, or the "written" and shared ones.

        Raises ValueError for any other word.
        """
        evidence = self.log_ratios(knowledge)

        def score(seeds: Sequence[NDArray[np.int64]], candidates: NDArray[np.int64]) -> NDArray[np.floating]:
            posterior = np.stack([evidence[rows].sum(0) for rows in seeds])
            posterior -= logsumexp(posterior, axis=1, keepdims=True)
            return np.log(np.exp(posterior) @ np.exp(evidence[candidates]).T)

        return score

    def log_ratios(self, knowledge: str = "all") -> NDArray[np.float64]:
        """Return log L f64 [N, T]: how much likelier each theme makes each track than a pick at random."""
        welcome = self.welcome(knowledge)
        for pool in np.unique(self._pools):
            inside = self._pools == pool
            welcome[inside] /= welcome[inside].mean(0)
        outliers = self._config.outlier_share
        return np.log((1 - outliers) * welcome + outliers)

    def welcome(self, knowledge: str = "all") -> NDArray[np.float64]:
        """Return W f64 [N, T], or what is expected of it. Raises ValueError for an unknown `knowledge`."""
        if knowledge not in KNOWLEDGE:
            raise ValueError(f"knowledge is one of {', '.join(KNOWLEDGE)}, not {knowledge!r}")
        welcome = np.ones((len(self._values), len(self._themes)))
        of_scene = np.ones_like(welcome)
        hidden = np.ones((len(self._themes), len(self._themes)))
        for f, factor in enumerate(self._factors):
            if not factor.matters:
                continue
            if knowledge == "all" or (factor.heard if knowledge == "audible" else factor.read):
                same = self._values[:, f, None] == self._themes[None, :, f]
                welcome *= np.where(same, 1.0, factor.tolerance)
                of_scene *= self._lean(same, 0.0)
            else:
                same = self._themes[:, f, None] == self._themes[None, :, f]
                hidden *= self._lean(same, factor.tolerance)
        return welcome * (of_scene / of_scene.sum(1, keepdims=True) @ hidden)

    def _lean(self, same: NDArray[np.bool_], tolerance: float) -> NDArray[np.float64]:
        """h K + (1 - h) mean K, where K is 1 for what is the `same` and `tolerance` for all else."""
        habit, choices = self._config.habit, self._config.values
        mean = (1 + (choices - 1) * tolerance) / choices
        return habit * np.where(same, 1.0, tolerance) + (1 - habit) * mean
