"""Simulated listeners for the demo: `python -m demo.simulate DATASET_DIR` writes its listens.parquet.

Nobody's listening to these songs is on record, so it is simulated, from what is real in them, with a fixed
seed. Every id starts with "sim-". The model, for listener u and track i:

    theta_u ~ Dirichlet(0.25, ..., 0.25)       shares of the six ARCHETYPES
    x_i   = [language one-hot (de, en, fr, other) | era | brightness, register, onsets, dynamics]
    w_u   = sum_k theta_uk w_k + 0.35 n        n ~ N(0, I); w_k: the archetype's weights of x
    A_u   = sum_k theta_uk A_k + 0.5 n         A_k(name) ~ N(0, 1): an archetype's love of a composer;
                                               B_k and B_u the same for lyricists
    p_i   = log(1 + Pareto(1.6))               popularity: heavy-tailed, not to be heard in the track
    a_ui  = 1.2 w_u . x_i + 0.7 A_u(composer_i) + 0.4 B_u(lyricist_i) + 0.8 p_i
    P_ui  = 0.92 softmax_i(a_ui) + 0.08 / N    a little of everything
    |I_u| = round(exp(N(log 14, 0.5))), cut to 5..40: drawn without replacement with weights P_ui
    plays = 1 + floor(exp(0.6 s_ui + N(0.4, 0.9)))   s_ui: a_ui standardised over the listener's tracks
    liked ~ Bernoulli(sigmoid(1.5 s_ui - 1))

Era is the composer's year of birth; the four audible properties are measured from the audio (`audible`);
these five are standardised over the tracks and cut at +-2.5 (0 where unknown). All draws are made over track
ids, composers and lyricists in sorted order from numpy's default_rng(seed): the order of the file changes
nothing.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.sound.audio import decode
from index.sound.features import log_mel

LISTENERS = 600
SEED = 20_250
LANGUAGES = ("de", "en", "fr")  # the fourth column: any other, or unknown
AUDIBLE = ("brightness", "register", "onsets", "dynamics")
FEWEST, MOST = 5, 40  # tracks a listener heard
FRAMES_A_SECOND = 100

# Weights of de, en, fr, other | era (+: later) | brightness, register, onsets, dynamics.
ARCHETYPES: dict[str, tuple[float, ...]] = {
    "german romantics, calm": (1.6, -0.6, -0.6, 0.0, -0.2, -0.3, 0.0, -0.8, -0.4),
    "french salons, bright": (-0.7, -0.5, 1.8, 0.3, 0.3, 0.8, 0.3, 0.0, 0.0),
    "english song, after 1850": (-0.6, 1.8, -0.3, 0.0, 0.8, 0.0, 0.0, 0.2, 0.0),
    "the early ones, any tongue": (0.2, 0.0, 0.0, 0.4, -1.5, 0.2, 0.4, 0.0, 0.0),
    "dense and dramatic": (0.0, 0.0, 0.0, 0.0, 0.6, 0.2, 0.0, 1.1, 1.0),
    "low and dark": (0.0, 0.0, 0.0, 0.0, 0.0, -1.1, -1.2, -0.2, 0.0),
}


@dataclass(frozen=True)
class Songs:
    """What the taste model reads of the tracks, in order of their ids.

    `features` f64 [N, 9] is x of the equations; `composer` and `lyricist` are numbers of names, -1 where
    unknown.
    """

    ids: tuple[str, ...]
    features: NDArray[np.float64]
    composer: NDArray[np.int64]
    lyricist: NDArray[np.int64]


@dataclass(frozen=True)
class SimulatedListens:
    """One entry a (listener, track) pair, ordered by listener, then track: listener number and row of
    `Songs`.

    `taste` f64 [listeners, archetypes] is theta: the truth that a test can hold the listens against.
    """

    listener: NDArray[np.int64]
    track: NDArray[np.int64]
    plays: NDArray[np.int64]
    liked: NDArray[np.bool_]
    taste: NDArray[np.float64]


def audible(mel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return brightness, register, onsets a second and dynamics of log-mel clips [n, frames, 64] in dB, as
    [4].

    brightness: mean over frames of the power-weighted mean mel bin; register: median over frames of the
    strongest bin; onsets: how often a second the spectral flux (mean rise in dB over the bins, over 50 ms)
    comes to stand 1.5 standard deviations above its mean; dynamics: standard deviation of the frames'
    loudness in dB. Frames more than 40 dB below the loudest do not count.
    """
    frames = np.asarray(mel, np.float64).reshape(-1, mel.shape[-1])
    power = 10 ** (frames / 10)
    loudness = 10 * np.log10(power.sum(1))
    sounding = loudness > loudness.max() - 40
    bins = np.arange(mel.shape[-1])
    brightness = ((power @ bins) / power.sum(1))[sounding].mean()
    register = float(np.median(frames[sounding].argmax(1)))
    heard = np.maximum(frames, frames.max() - 60)
    flux = np.maximum(heard[5:] - heard[:-5], 0).mean(1)
    tall = flux > flux.mean() + 1.5 * flux.std()
    onsets = np.count_nonzero(tall[1:] & ~tall[:-1])
    return np.array([brightness, register, FRAMES_A_SECOND * onsets / len(frames), loudness[sounding].std()])


def songs(table: pa.Table, measured: NDArray[np.float64]) -> Songs:
    """Return the rows of tracks.parquet, with `audible` of each (`measured` [N, 4]), as the model needs."""
    order = np.argsort(np.array(table["track_id"].to_pylist()))
    columns = {name: [table[name][int(i)].as_py() for i in order] for name in ("track_id", "artist", "lyricist")}
    language = [table["language"][int(i)].as_py() for i in order]
    born = np.array([table["composer_born"][int(i)].as_py() or np.nan for i in order], np.float64)
    one_hot = np.zeros((len(order), len(LANGUAGES) + 1))
    one_hot[np.arange(len(order)), [LANGUAGES.index(x) if x in LANGUAGES else len(LANGUAGES) for x in language]] = 1
    continuous = _standardised(np.column_stack([born, measured[order]]))
    return Songs(
        tuple(columns["track_id"]),
        np.hstack([one_hot, continuous]),
        _numbered(columns["artist"]),
        _numbered(columns["lyricist"]),
    )


def simulate(tracks: Songs, listeners: int = LISTENERS, seed: int = SEED) -> SimulatedListens:
    """Draw who heard what by the equations at the top of this file."""
    rng = np.random.default_rng(seed)
    popularity = np.log1p(rng.pareto(1.6, len(tracks.ids)))
    kinds = np.array(list(ARCHETYPES.values()))
    names = [1 + int(of.max(initial=-1)) for of in (tracks.composer, tracks.lyricist)]
    loved = [rng.standard_normal((len(kinds), n)) for n in names]
    taste = rng.dirichlet(np.full(len(kinds), 0.25), listeners)
    weights = taste @ kinds + 0.35 * rng.standard_normal((listeners, kinds.shape[1]))
    composer, lyricist = (taste @ love + 0.5 * rng.standard_normal((listeners, love.shape[1])) for love in loved)
    affinity = 1.2 * weights @ tracks.features.T + 0.8 * popularity
    affinity += 0.7 * _of_name(composer, tracks.composer) + 0.4 * _of_name(lyricist, tracks.lyricist)
    size = np.clip(np.rint(np.exp(rng.normal(np.log(14), 0.5, listeners))), FEWEST, MOST).astype(np.int64)
    size = np.minimum(size, len(tracks.ids))
    rows = [_heard(affinity[u], size[u], rng) for u in range(listeners)]
    listener, track = np.repeat(np.arange(listeners), size), np.concatenate(rows)
    strength = np.concatenate([_standardised(affinity[u, heard][:, None])[:, 0] for u, heard in enumerate(rows)])
    plays = 1 + np.floor(np.exp(0.6 * strength + rng.normal(0.4, 0.9, len(track)))).astype(np.int64)
    liked = rng.random(len(track)) < 1 / (1 + np.exp(1 - 1.5 * strength))
    return SimulatedListens(listener, track, plays, liked, taste)


def write_listens(path: Path, tracks: Songs, listens: SimulatedListens) -> None:
    """Write listens.parquet: listener_id, track_id, plays, liked. The file appears whole or not at all."""
    table = pa.table(
        {
            "listener_id": [f"sim-{u + 1:04d}" for u in listens.listener],
            "track_id": [tracks.ids[i] for i in listens.track],
            "plays": pa.array(listens.plays, pa.int64()),
            "liked": pa.array(listens.liked, pa.bool_()),
        }
    )
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, compression="zstd")
    os.replace(unfinished, path)


def measure(root: Path, audio: Sequence[str]) -> NDArray[np.float64]:
    """Return `audible` of each file under `root`, [N, 4]; raises index.sound.audio.AudioError on a bad one."""
    return np.stack([audible(log_mel(decode(root / name).clips)) for name in audio])


def _heard(affinity: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    share = np.exp(affinity - affinity.max())
    share = 0.92 * share / share.sum() + 0.08 / len(share)
    return np.sort(rng.choice(len(share), size, replace=False, p=share))


def _of_name(love: NDArray[np.float64], name: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(name >= 0, love[:, name], 0.0) if love.shape[1] else np.zeros((len(love), len(name)))


def _numbered(names: Sequence[str | None]) -> NDArray[np.int64]:
    number = {name: n for n, name in enumerate(sorted({name for name in names if name}))}
    return np.array([number[name] if name else -1 for name in names], np.int64)


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zero mean and unit deviation by column, cut at +-2.5; NaN and constant columns become 0."""
    deviation = np.nanstd(values, axis=0)
    scaled = (values - np.nanmean(values, axis=0)) / np.where(deviation > 0, deviation, np.inf)
    return np.nan_to_num(np.clip(scaled, -2.5, 2.5))


def main() -> None:
    """Read DATASET_DIR/tracks.parquet and its audio, write DATASET_DIR/listens.parquet."""
    parser = argparse.ArgumentParser(description="Simulate listeners for a data set with composers and lyricists.")
    parser.add_argument("dataset", type=Path, metavar="DATASET_DIR")
    parser.add_argument("--listeners", type=int, default=LISTENERS)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    table = pq.read_table(args.dataset / "tracks.parquet")
    tracks = songs(table, measure(args.dataset, table["audio"].to_pylist()))
    listens = simulate(tracks, args.listeners, args.seed)
    write_listens(args.dataset / "listens.parquet", tracks, listens)
    heard = np.bincount(listens.track, minlength=len(tracks.ids))
    print(
        f"{args.listeners} simulated listeners, {len(listens.track)} listens of {len(tracks.ids)} tracks "
        f"({heard.min()}-{heard.max()} listeners a track, median {np.median(heard):.0f}), seed {args.seed}"
    )


if __name__ == "__main__":
    main()
