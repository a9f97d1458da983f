"""The Million Playlist Dataset (Chen et al., RecSys 2018) as a data set directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.adapters.audio import AudioFolder
from training.adapters.collection import Collection, trim
from training.adapters.folder import attach_audio, check_target, finish, settings_of
from training.adapters.gather import Gathering
from training.adapters.pools import PoolSettings, draw_pools
from training.adapters.report import ImportReport, contradiction
from training.adapters.slices import find_slices
from training.progress import Progress

SPLITS = ("hash", "paper")
_SHORTEST = 2  # a playlist of one track relates nothing


@dataclass(frozen=True)
class MpdOptions:
    """What to take of the data set.

    playlists: how many, drawn by hash of `seed` and pid (None: all). shortest, longest: least and most distinct
    tracks of a playlist. occurrences: playlists that a track must be in. splits: "hash" leaves them to the data set's
    hash rule, "paper" draws strict cold-start pools as `pools` says. challenge: challenge_set.json, whose playlists
    then are the test playlists (splits "paper"). audio: folder of files named by Spotify id; audio_only: leave out
    tracks without a file, after the splits are drawn, so that they are the same with and without.
    """

    playlists: int | None = None
    shortest: int = _SHORTEST
    longest: int | None = None
    occurrences: int = 1
    splits: str = "hash"
    pools: PoolSettings = field(default_factory=PoolSettings)
    seed: int = 45
    challenge: Path | None = None
    audio: Path | None = None
    audio_only: bool = False

    def __post_init__(self) -> None:
        if self.splits not in SPLITS:
            raise contradiction(f"splits are drawn by {' or '.join(SPLITS)}, not {self.splits!r}")
        playlists = 1 if self.playlists is None else self.playlists
        if min(playlists, self.occurrences) < 1 or self.shortest < _SHORTEST:
            raise contradiction("ask for 1 playlist, 1 occurrence of a track and 2 tracks of a playlist at least")
        if self.longest is not None and self.longest < self.shortest:
            raise contradiction(f"no playlist has {self.shortest} tracks or more and {self.longest} or fewer")
        if self.challenge is not None and self.splits != "paper":
            raise contradiction("the challenge set makes test playlists: it needs --splits paper")
        if self.audio_only and self.audio is None:
            raise contradiction("--audio-only needs --audio")


def import_mpd(source: Path, target: Path, options: MpdOptions, progress: Progress) -> ImportReport:
    """Write the slices in `source` as a data set directory `target`, whole or not at all.

    The same slices and options give the same files. Raises AdapterError for a source without slices, for more than
    1 % broken rows, and for a target that no import made.
    """
    slices = find_slices(source)
    check_target(target, [path for path in (source, options.audio, options.challenge) if path is not None])
    audio = AudioFolder(options.audio) if options.audio is not None else None
    report = ImportReport("mpd", settings_of(options))
    collection = _gather(slices, options, report, progress)
    report.say(progress)
    report.judge()
    collection = trim(collection, options.shortest, options.occurrences).keep_used_tracks()
    if options.challenge is not None and not (collection.reserved is not None and collection.reserved.any()):
        raise contradiction(f"{options.challenge.name} holds no playlist within these limits to draw the test from")
    if options.splits == "paper":
        collection = draw_pools(collection, options.pools, np.random.default_rng(options.seed))
    if audio is not None:
        keys = [(key,) for key in collection.tracks["track_id"].to_pylist()]
        collection = attach_audio(collection, audio, keys, options.audio_only)
    finish(target, collection, audio, report, progress)
    return report


def _gather(slices: Sequence[Path], options: MpdOptions, report: ImportReport, progress: Progress) -> Collection:
    gathering = Gathering(
        report, shortest=options.shortest, longest=options.longest, sample=options.playlists, seed=options.seed
    )
    with progress.stage("read slices", len(slices) + (options.challenge is not None)) as stage:
        for path in slices:
            gathering.read(path)
            stage.advance(broken=report.left_out)
        if options.challenge is not None:
            gathering.read(options.challenge, reserved=True)
            stage.advance(broken=report.left_out)
    if gathering.repeats:
        report.note(f"{gathering.repeats} repeats of a track within its playlist were dropped: playlists are sets")
    return gathering.collection()
