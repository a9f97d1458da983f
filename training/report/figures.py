"""The report's pictures, as PNG files: the paper's figures 3 to 5, and what its summary asks to be looked at."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from training.evaluation.estimates import Estimate
from training.folders import replace_file
from training.larp.content import Vectors

_CLOUD, _CHOSEN, _SECOND = "#c8ccd4", "#c0392b", "#2c6fbb"
_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "debut"}
_MOST = 1500  # points of a cloud


def _panels(count: int, width: float = 3.0, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width * count, height), layout="constrained")
        return figure, [figure.add_subplot(1, count, k + 1) for k in range(count)]


def _save(figure: Figure, path: Path) -> Path:
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=130, metadata={"Software": None})
    return replace_file(path, drawn.getvalue())


def playlist_in_the_cloud(
    variants: Mapping[str, Vectors], cloud: NDArray[np.int64], playlist: NDArray[np.int64], path: Path
) -> Path:
    """Figure 3: the first two principal components of all tracks, and of one test playlist's among them.

    variants: vectors f32 [N, d] by name, a panel each. cloud and playlist: rows.
    """
    figure, panels = _panels(len(variants))
    for axes, (name, vectors) in zip(panels, variants.items(), strict=True):
        rows = cloud[~np.isnan(vectors[cloud]).any(1)]
        pca = PCA(2, random_state=0).fit(vectors[rows])
        inside = playlist[~np.isnan(vectors[playlist]).any(1)]
        axes.scatter(*pca.transform(vectors[rows[:_MOST]]).T, s=4, color=_CLOUD)
        axes.scatter(*pca.transform(vectors[inside]).T, s=14, color=_CHOSEN)
        axes.set(title=name, xticks=[], yticks=[])
    return _save(figure, path)


def curve(
    points: Sequence[tuple[str, Estimate]], x_label: str, y_label: str, path: Path, line: float | None = None
) -> Path:
    """Values with their intervals by a setting, as Figure 4; a line marks chance."""
    figure, (axes,) = _panels(1, 4.0)
    values = np.array([(found.value, found.low, found.high) for _, found in points])
    places = np.arange(len(points))
    spread = np.abs(values[:, 1:].T - values[:, 0])
    axes.errorbar(places, values[:, 0], spread, fmt="o-", color=_SECOND, capsize=3, ms=4)
    if line is not None:
        axes.axhline(line, color=_CLOUD, lw=1)
    axes.set(xlabel=x_label, ylabel=y_label, xticks=places, ylim=(0, None))
    axes.set_xticklabels([point[0] for point in points])
    return _save(figure, path)


def sweeps(settings: Mapping[str, Sequence[tuple[str, Estimate]]], y_label: str, path: Path) -> Path:
    """What each value of each setting changes, with intervals: a panel a setting, a line at no change."""
    figure, panels = _panels(len(settings), 2.4, 2.6)
    low = min(found.low for points in settings.values() for _, found in points)
    high = max(found.high for points in settings.values() for _, found in points)
    room = 0.05 * (high - low) or 0.01
    for axes, (name, points) in zip(panels, settings.items(), strict=True):
        values = np.array([(found.value, found.low, found.high) for _, found in points])
        places = np.arange(len(points))
        axes.axhline(0, color=_CLOUD, lw=1)
        axes.errorbar(
            places, values[:, 0], np.abs(values[:, 1:].T - values[:, 0]), fmt="o", color=_SECOND, capsize=3, ms=4
        )
        axes.set(xlabel=name, xticks=places, ylim=(low - room, high + room))
        axes.set_xticklabels([point[0] for point in points])
    panels[0].set_ylabel(y_label)
    return _save(figure, path)


def by_part(values: Mapping[str, Sequence[float]], names: Sequence[str], labels: tuple[str, str], path: Path) -> Path:
    """Means of parts of the queries, a line a method; `labels` of the axes."""
    figure, (axes,) = _panels(1, 6.0, 3.2)
    for method, means in values.items():
        axes.plot(np.arange(len(names)), means, "o-", ms=3, label=method)
    axes.set(xlabel=labels[0], ylabel=labels[1], xticks=np.arange(len(names)), ylim=(0, None))
    axes.set_xticklabels(names)
    axes.legend(loc="best", frameon=False, fontsize=7)
    return _save(figure, path)


def convergence(history: Sequence[tuple[str, int, float]], untrained: float | None, y_label: str, path: Path) -> Path:
    """Figure 5: validation score by epoch, the stages one after the other."""
    figure, (axes,) = _panels(1, 5.0)
    scores = [score for _, _, score in history]
    axes.plot(np.arange(1, len(scores) + 1), scores, "o-", ms=3, color=_SECOND)
    if untrained is not None:
        axes.plot(0, untrained, "o", color=_CLOUD)
        axes.annotate("untrained", (0, untrained), textcoords="offset points", xytext=(4, 4), color="#777777")
    for place, (stage, epoch, _) in enumerate(history, 1):
        if epoch == 0:
            axes.axvline(place - 0.5, color=_CLOUD, lw=1)
            axes.text(place - 0.4, axes.get_ylim()[1], stage.upper(), va="top", color="#777777")
    axes.set(xlabel="epoch", ylabel=y_label)
    return _save(figure, path)


def modalities(
    variants: Mapping[str, Mapping[str, Vectors]], rows: NDArray[np.int64], path: Path, most: int = 150
) -> Path:
    """t-SNE of audio and text vectors of the same tracks, joined by lines: how near both towers put a track."""
    figure, panels = _panels(len(variants), 3.6, 3.4)
    rows = rows[:: max(1, len(rows) // most)][:most]
    for axes, (name, vectors) in zip(panels, variants.items(), strict=True):
        audio, text = vectors["audio"][rows], vectors["text"][rows]
        complete = ~(np.isnan(audio).any(1) | np.isnan(text).any(1))
        both = np.concatenate([audio[complete], text[complete]])
        perplexity = min(30.0, max(2.0, len(both) / 6))
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(both)
        first, second = np.split(flat, 2)
        for one, other in zip(first, second, strict=True):
            axes.plot(*zip(one, other, strict=True), color=_CLOUD, lw=0.5, zorder=0)
        axes.scatter(*first.T, s=6, color=_SECOND, label="audio")
        axes.scatter(*second.T, s=6, color=_CHOSEN, label="text")
        axes.set(title=name, xticks=[], yticks=[])
    panels[0].legend(loc="best", frameon=False)
    return _save(figure, path)


def same_against_random(variants: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], path: Path) -> Path:
    """Cosines of pairs from one test playlist, and of random pairs, as histograms: a panel a variant."""
    figure, panels = _panels(len(variants))
    for axes, (name, (same, random)) in zip(panels, variants.items(), strict=True):
        bins = np.linspace(min(same.min(), random.min()), 1, 40)
        axes.hist(random, bins, density=True, color=_CLOUD, label="random pairs")
        axes.hist(same, bins, density=True, histtype="step", color=_CHOSEN, label="same playlist")
        axes.set(title=name, xlabel="cosine", yticks=[])
    panels[0].legend(loc="upper left", frameon=False)
    return _save(figure, path)
