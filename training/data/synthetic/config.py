"""What a synthetic world is told: how many tracks, playlists and factors, and which factors matter."""

from dataclasses import dataclass

import numpy as np

from training.data.synthetic.sound import PROPERTIES

AUDIBLE, WRITTEN, SHARED = "audible", "written", "shared"
_MOST_FACTORS, _LEAST_TOLERANCE = 32, 1e-6  # so that no product of tolerances is too small for a float64


@dataclass(frozen=True)
class Factor:
    """One hidden property of a track, with one of `values` values.

    kind: "audible" (in the sound alone), "written" (in the title alone) or "shared" (in both). tolerance: how welcome
    a track of another value is in a playlist, as a share of how welcome one of the theme's own value is; 1 for a
    nuisance, which no playlist asks for. sound: the property of the sound that it sets; None for a written one.
    """

    name: str
    kind: str
    tolerance: float
    sound: str | None = None

    @property
    def heard(self) -> bool:
        """Whether it is in the sound."""
        return self.kind != WRITTEN

    @property
    def read(self) -> bool:
        """Whether it is in the title."""
        return self.kind != AUDIBLE

    @property
    def matters(self) -> bool:
        """Whether playlists ask for it."""
        return self.tolerance < 1


@dataclass(frozen=True)
class WorldConfig:
    """The size and make of a world. Raises ValueError for a value outside its range."""

    tracks: int = 1600
    """Number of tracks."""
    playlists: int = 400
    """Number of playlists."""
    playlist_length: int = 12
    """Mean number of tracks in a playlist; the lengths are even between 3/4 and 5/4 of it."""
    themes: int = 10
    """Number of themes that the playlists follow; at most values^2."""
    audible: int = 1
    """Factors that matter and are in the sound alone."""
    written: int = 1
    """Factors that matter and are in the title alone."""
    shared: int = 1
    """Factors that matter and are in both."""
    audible_nuisance: int = 1
    """Factors in the sound alone that no playlist asks for."""
    written_nuisance: int = 1
    """Factors in the title alone that no playlist asks for."""
    shared_nuisance: int = 2
    """Factors in both that no playlist asks for."""
    values: int = 5
    """Values of each factor."""
    strictest: float = 0.02
    """Tolerance of the first audible and of the first written factor (see `Factor`)."""
    laxest: float = 0.1
    """Tolerance of the last ones, and of the shared ones; between the two they go geometrically."""
    outlier_share: float = 0.15
    """Share of a playlist's tracks that are drawn at random, whatever the theme."""
    artists: int = 120
    """Number of artists, with two albums each; every artist belongs to the scene of one theme."""
    habit: float = 0.6
    """How often a track's factor has its artist's value (the scene's, where it matters); else it is drawn at random."""
    disjoint_artists: bool = False
    """Whether each artist's tracks are all of one split."""
    listeners: int = 0
    """Simulated listeners; 0 writes no listens.parquet."""
    valid_share: float = 0.15
    """Share of tracks, of playlists and (if disjoint) of artists for validation."""
    test_share: float = 0.2
    """The same for test; the rest is for training."""
    clip_s: float = 12.0
    """Length of a track's sound in seconds."""
    seed: int = 0
    """Of all generators."""

    def __post_init__(self) -> None:
        self._check_least()
        self._check_shares()
        self._check_factors()
        self._check_splits()

    def _check_least(self) -> None:
        least = {
            "tracks": 1,
            "playlists": 3,
            "playlist_length": 4,
            "themes": 2,
            "values": 2,
            "artists": 3,
            "listeners": 0,
            "seed": 0,
            **dict.fromkeys(("audible", "written", "shared"), 0),
            **dict.fromkeys(("audible_nuisance", "written_nuisance", "shared_nuisance"), 0),
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not 1 <= self.clip_s <= 600:
            raise ValueError(f"clip_s must be in [1, 600] seconds, not {self.clip_s}")

    def _check_shares(self) -> None:
        if not _LEAST_TOLERANCE <= self.strictest <= self.laxest < 1:
            raise ValueError(
                f"tolerances must be {_LEAST_TOLERANCE} <= strictest <= laxest < 1, not {self.strictest}, {self.laxest}"
            )
        if not 0 <= self.outlier_share < 1:
            raise ValueError(f"outlier_share must be in [0, 1), not {self.outlier_share}")
        if not 0 <= self.habit <= 1:
            raise ValueError(f"habit must be in [0, 1], not {self.habit}")
        if not (self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1):
            raise ValueError(
                f"valid_share and test_share must be over 0 and leave some for training, not {self.valid_share}, "
                f"{self.test_share}"
            )

    def _check_factors(self) -> None:
        matter = self.audible + self.written + self.shared
        if not matter:
            raise ValueError("no factor matters: let audible, written or shared be at least 1")
        heard = self.audible + self.shared + self.audible_nuisance + self.shared_nuisance
        if heard > len(PROPERTIES):
            raise ValueError(f"a sound has {len(PROPERTIES)} properties ({', '.join(PROPERTIES)}), not {heard}")
        if matter > _MOST_FACTORS:
            raise ValueError(f"at most {_MOST_FACTORS} factors can matter, not {matter}")
        if self.themes > self.values**2:
            raise ValueError(f"{self.values} values make {self.values**2} themes at most, not {self.themes}")

    def _check_splits(self) -> None:
        for name in ("playlists", "artists"):
            if self.sizes(getattr(self, name))[0] < 1:
                raise ValueError(f"{getattr(self, name)} {name} leave none for training: let there be more")
        longest = self.lengths[1]
        for name, tracks in zip(("training", "validation", "test"), self.sizes(self.tracks), strict=True):
            if tracks < 2 * longest:
                raise ValueError(
                    f"{tracks} {name} tracks are too few for playlists of up to {longest}: let there be at least twice "
                    "as many (tracks, valid_share, test_share, playlist_length)"
                )

    @property
    def lengths(self) -> tuple[int, int]:
        """Fewest and most tracks of a playlist."""
        return -(-3 * self.playlist_length // 4), 5 * self.playlist_length // 4

    def sizes(self, count: int) -> tuple[int, int, int]:
        """How many of `count` things are for training, validation and test: one of each at least."""
        valid, test = (max(1, round(share * count)) for share in (self.valid_share, self.test_share))
        return count - valid - test, valid, test


def factors_of(config: WorldConfig) -> tuple[Factor, ...]:
    """The factors of a world: those that matter first (audible, written, shared), then the nuisances.

    Those that can be heard are dealt the properties of the sound, in the order of `sound.PROPERTIES`.
    """
    tolerances = [
        *np.geomspace(config.strictest, config.laxest, config.audible),
        *np.geomspace(config.strictest, config.laxest, config.written),
        *[config.laxest] * config.shared,
        *[1.0] * (config.audible_nuisance + config.written_nuisance + config.shared_nuisance),
    ]
    kinds = [AUDIBLE] * config.audible + [WRITTEN] * config.written + [SHARED] * config.shared
    kinds += [AUDIBLE] * config.audible_nuisance + [WRITTEN] * config.written_nuisance
    kinds += [SHARED] * config.shared_nuisance
    sounds = iter(PROPERTIES)
    return tuple(
        Factor(_name(k, kinds, tolerances), kind, float(tolerances[k]), next(sounds) if kind != WRITTEN else None)
        for k, kind in enumerate(kinds)
    )


def _name(k: int, kinds: list[str], tolerances: list[float]) -> str:
    """E.g. "audible 1", "shared nuisance 2"."""
    alike = [j for j in range(k + 1) if kinds[j] == kinds[k] and (tolerances[j] < 1) == (tolerances[k] < 1)]
    return f"{kinds[k]}{'' if tolerances[k] < 1 else ' nuisance'} {len(alike)}"
