"""Makes a world: tables from hidden factors, playlists from themes, sound and titles from the factors' values.

Factors are categorical: a title can only name values, a finite list of themes makes the Bayes answer a finite sum
(`oracle`), and "can it be heard?" is an accuracy. The sound shows a value with jitter inside its class.

Every artist belongs to a scene, which is one of the themes: by habit its tracks have the theme's values of the factors
that matter, and values of its own of the nuisances; else a value is drawn at random, each factor by itself. Without
habits sound and title would agree in the shared factors alone, and most tracks would fit no theme.

Nuisances are as loud and as often written as what matters. Within-track contrast (WTC) aligns what sound and title of a
track share: by default two nuisances and one factor that matters, besides what habits show. Which factors count, and
how strictly, only the playlists say: that is left for the track-track and track-playlist contrasts.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.tracks.track import Track
from training.data.splits import SPLITS, TEST, TRAIN, VALID
from training.data.synthetic.config import Factor, WorldConfig, factors_of
from training.data.synthetic.oracle import Oracle
from training.data.synthetic.sound import Samples, encode_flac, render
from training.data.synthetic.words import names, titles
from training.data.writing import write_dataset
from training.progress import Progress

Values = NDArray[np.int64]
Listen = tuple[str, str, float, bool]

_ALBUMS = 2  # an artist
_JITTER = 0.6  # share of a value's interval that its tracks spread over
_TABLES, _WORDS, _PLAYLISTS, _LISTENERS, _SOUND = range(5)  # a generator each


@dataclass(frozen=True)
class World:
    """Tracks (N), playlists (P) and what is behind them; the sound is rendered on demand.

    values i64 [N, F]: the tracks' values of each factor. themes i64 [T, F]: the themes' values; those of nuisances
    mean nothing. track_split i8 [N], playlist_split i8 [P]: TRAIN, VALID or TEST. theme_of i64 [P]. members: rows of
    each playlist's tracks, all of its own split.
    """

    config: WorldConfig
    factors: tuple[Factor, ...]
    values: Values
    themes: Values
    tracks: list[Track]
    track_split: NDArray[np.int8]
    playlist_split: NDArray[np.int8]
    theme_of: Values
    members: list[Values] = field(repr=False)
    listens: list[Listen] = field(repr=False)

    def oracle(self) -> Oracle:
        """Return the oracle of this world's playlists."""
        return Oracle(self.config, self.factors, self.values, self.themes, self.track_split)

    def render(self, row: int) -> Samples:
        """Render the sound of one track, f32 [samples] at 48 kHz: the same whichever others are rendered."""
        rng = np.random.default_rng([self.config.seed, _SOUND, row])
        positions = {}
        for factor, value in zip(self.factors, self.values[row], strict=True):
            if factor.sound is not None:
                positions[factor.sound] = (value + 0.5 + _JITTER * rng.uniform(-0.5, 0.5)) / self.config.values
        return render(positions, self.config.clip_s, rng)

    def write(self, root: Path, progress: Progress, *, workers: int = 1) -> None:
        """Write the data set directory (audio/ in FLAC, about 0.45 MB a track of 12 s) by `workers` threads."""
        folder = root / "audio"
        folder.mkdir(parents=True, exist_ok=True)

        def write_sound(row: int) -> None:
            (folder / f"{self.tracks[row].track_id}.flac").write_bytes(encode_flac(self.render(row)))

        with ThreadPoolExecutor(workers) as pool, progress.stage("render tracks", len(self.tracks)) as stage:
            for _ in pool.map(write_sound, range(len(self.tracks))):
                stage.advance(1)
        ids = [track.track_id for track in self.tracks]
        playlists = {_playlist_id(p): [ids[row] for row in rows] for p, rows in enumerate(self.members)}
        splits = _named_splits("track", ids, self.track_split)
        splits |= _named_splits("playlist", list(playlists), self.playlist_split)
        write_dataset(
            root,
            self.tracks,
            audio={track_id: f"audio/{track_id}.flac" for track_id in ids},
            playlists=playlists,
            listens=self.listens or None,
            splits=splits,
        )


def make_world(config: WorldConfig) -> World:
    """Draw a world: the same config gives the same world."""
    factors = factors_of(config)
    rng = np.random.default_rng([config.seed, _TABLES])
    track_split = _split(config, config.tracks, rng)
    artist = _artists(config, track_split, rng)
    themes = _themes(config, len(factors), rng)
    values = _values(config, factors, themes, artist, rng)
    oracle = Oracle(config, factors, values, themes, track_split)
    tracks = _tracks(config, factors, values, artist)
    playlists = _playlists(config, track_split, oracle.welcome())
    listens = _listens(config, tracks, np.exp(oracle.log_ratios()))
    return World(config, factors, values, themes, tracks, track_split, *playlists, listens)


def _split(config: WorldConfig, count: int, rng: np.random.Generator) -> NDArray[np.int8]:
    return rng.permutation(np.repeat(np.array([TRAIN, VALID, TEST], np.int8), config.sizes(count)))


def _artists(config: WorldConfig, track_split: NDArray[np.int8], rng: np.random.Generator) -> Values:
    """Draw each track's artist, i64 [N]: of all, or of those of its split."""
    if not config.disjoint_artists:
        return rng.integers(config.artists, size=len(track_split))
    first = np.cumsum([0, *config.sizes(config.artists)])
    return rng.integers(first[track_split], first[track_split + 1])


def _values(
    config: WorldConfig, factors: Sequence[Factor], themes: Values, artist: Values, rng: np.random.Generator
) -> Values:
    """Draw the tracks' values, i64 [N, F]: their artist's own by habit, else any. Artist a's scene is a mod T."""
    own = rng.integers(config.values, size=(config.artists, len(factors)))
    matter = [f for f, factor in enumerate(factors) if factor.matters]
    own[:, matter] = themes[np.arange(config.artists) % config.themes][:, matter]
    drawn = rng.integers(config.values, size=(len(artist), len(factors)))
    return np.where(rng.random(drawn.shape) < config.habit, own[artist], drawn)


def _themes(config: WorldConfig, factors: int, rng: np.random.Generator) -> Values:
    """Draw the themes' values, i64 [T, F], every value of a factor in equally many themes (to one).

    Theme k = b V + j has the value number j + f b (mod V) of factor f, numbered at random. Where V is a prime and
    F <= V, no two themes share two values (an orthogonal array), so two strict factors are enough to tell a theme.
    """
    block, place = np.divmod(np.arange(config.themes), config.values)
    number = (place[:, None] + np.arange(factors) * block[:, None]) % config.values
    numbered = np.stack([rng.permutation(config.values) for _ in range(factors)])
    return np.take_along_axis(numbered, number.T, axis=1).T


def _tracks(config: WorldConfig, factors: Sequence[Factor], values: Values, artist: Values) -> list[Track]:
    rng = np.random.default_rng([config.seed, _WORDS])
    called, albums = names(config.artists, _ALBUMS, rng)
    album = rng.integers(_ALBUMS, size=len(artist))
    read = [f for f, factor in enumerate(factors) if factor.read]
    title = titles(values[:, read], config.values, rng)
    return [
        Track(
            f"track-{row:06d}",
            title=title[row],
            artist=called[artist[row]],
            album=albums[artist[row]][album[row]],
            duration_s=config.clip_s,
        )
        for row in range(len(artist))
    ]


def _playlists(
    config: WorldConfig, track_split: NDArray[np.int8], welcome: NDArray[np.float64]
) -> tuple[NDArray[np.int8], Values, list[Values]]:
    """Draw each playlist's split, theme and rows."""
    rng = np.random.default_rng([config.seed, _PLAYLISTS])
    splits = _split(config, config.playlists, rng)
    theme_of = rng.integers(config.themes, size=config.playlists)
    members = [
        _playlist(config, np.flatnonzero(track_split == split), welcome[:, theme], rng)
        for split, theme in zip(splits, theme_of, strict=True)
    ]
    return splits, theme_of, members


def _playlist(config: WorldConfig, pool: Values, welcome: NDArray[np.float64], rng: np.random.Generator) -> Values:
    """Draw the rows of one playlist from the pool: by welcome, outliers evenly, in random order."""
    least, most = config.lengths
    length = rng.integers(least, most + 1)
    outliers = rng.binomial(length, config.outlier_share)
    share = welcome[pool] / welcome[pool].sum()
    near = rng.choice(pool, length - outliers, replace=False, p=share)
    return rng.permutation(np.concatenate([near, rng.choice(np.setdiff1d(pool, near), outliers, replace=False)]))


def _listens(config: WorldConfig, tracks: Sequence[Track], ratios: NDArray[np.float64]) -> list[Listen]:
    """Draw listeners with a taste for one to three themes, who heard 15 to 40 tracks and play the fitting ones more.

    `ratios` f64 [N, T]: how much likelier a theme makes a track.
    """
    rng = np.random.default_rng([config.seed, _LISTENERS])
    listens: list[Listen] = []
    for listener in range(config.listeners):
        liked = rng.choice(config.themes, min(config.themes, rng.integers(1, 4)), replace=False)
        fit = ratios[:, liked] @ rng.dirichlet(np.ones(len(liked)))
        heard = rng.choice(len(tracks), min(len(tracks), rng.integers(15, 41)), replace=False, p=fit / fit.sum())
        plays = 1 + rng.poisson(np.minimum(fit[heard], 8.0))
        hearts = rng.random(len(heard)) < fit[heard] / (fit[heard] + 5)
        listens += [
            (f"listener-{listener:05d}", tracks[row].track_id, float(count), bool(heart))
            for row, count, heart in zip(heard, plays, hearts, strict=True)
        ]
    return listens


def _playlist_id(playlist: int) -> str:
    return f"playlist-{playlist:06d}"


def _named_splits(kind: str, ids: Sequence[str], splits: NDArray[np.int8]) -> dict[tuple[str, str], str]:
    called = {number: name for name, number in SPLITS.items()}
    return {(kind, key): called[split] for key, split in zip(ids, splits.tolist(), strict=True)}
