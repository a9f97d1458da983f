"""LFM-2b (Schedl et al., CHIIR 2022) as a data set directory: listening becomes playlists as in LARP, section 4.1.1."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from training.adapters.audio import AudioFolder
from training.adapters.collection import NONE, TRACK_SCHEMA, Collection, PlayCounts
from training.adapters.folder import attach_audio, check_target, finish, settings_of
from training.adapters.listening import COUNTS, EVENTS, Interactions, Titles, all_users, read_interactions
from training.adapters.report import AdapterError, ImportReport, contradiction
from training.adapters.tsv import find_table
from training.adapters.weekly import Splits, WeeklyPools, WeeklySettings, draw_users, weekly_discovery
from training.progress import Progress

ORDERS = {"auto": (EVENTS, COUNTS), "events": (EVENTS,), "counts": (COUNTS,)}
_ORDER = {EVENTS: "in order of time", COUNTS: "in order of the file, for counts have no time"}


@dataclass(frozen=True)
class LfmOptions:
    """What to take of the data set.

    weekly: the users of each split and the cut of their playlists. interactions: "events" (listening-events, which has
    times), "counts" (listening-counts, which has none), or "auto", the first of these that is there. occurrences:
    drawn users that must have heard a track. listens: write listens.parquet, too, for BCL. audio: folder of files
    named by LFM's track_id or by Spotify id; audio_only: leave out tracks without a file, after the splits are drawn.
    """

    weekly: WeeklySettings = field(default_factory=WeeklySettings)
    interactions: str = "auto"
    occurrences: int = 1
    listens: bool = False
    seed: int = 45
    audio: Path | None = None
    audio_only: bool = False

    def __post_init__(self) -> None:
        if self.interactions not in ORDERS:
            raise contradiction(f"interactions are read from {', '.join(ORDERS)}, not {self.interactions!r}")
        if self.occurrences < 1:
            raise contradiction("ask for 1 occurrence of a track at least")
        if self.audio_only and self.audio is None:
            raise contradiction("--audio-only needs --audio")


def import_lfm(source: Path, target: Path, options: LfmOptions, progress: Progress) -> ImportReport:
    """Write the tables in `source` as a data set directory `target`, whole or not at all.

    The same tables and options give the same files. Raises AdapterError for missing tables or columns, for more than
    1 % broken rows of one, and for a target that no import made.
    """
    name, path = _interactions(source, options.interactions)
    check_target(target, [folder for folder in (source, options.audio) if folder is not None])
    audio = AudioFolder(options.audio) if options.audio is not None else None
    report = ImportReport("lfm", settings_of(options))
    titles = Titles(source, report)
    rng = np.random.default_rng(options.seed)
    users, user_split = draw_users(all_users(source, path, report, progress), options.weekly, rng)
    report.note(f"playlists are from {path.name}: the songs of a user are {_ORDER[name]}")
    heard = read_interactions(path, name, users, report, progress)
    heard = heard.keep(_common(heard, options.occurrences))
    pools = weekly_discovery(heard.user, heard.song, user_split, len(heard.songs), options.weekly, rng)
    kept = pools.song_split != NONE
    columns, spotify = titles.read(heard.songs[kept], heard.albums[kept], progress)
    report.say(progress)
    report.judge()
    collection = _collection(heard, pools, users, user_split, columns, options.listens)
    if audio is not None:
        keys = list(zip(collection.tracks["track_id"].to_pylist(), spotify, strict=True))
        collection = attach_audio(collection, audio, keys, options.audio_only)
    finish(target, collection, audio, report, progress)
    return report


def _interactions(source: Path, order: str) -> tuple[str, Path]:
    for name in ORDERS[order]:
        if (path := find_table(source, name)) is not None:
            return name, path
    wanted = " or ".join(f"{name}.tsv" for name in ORDERS[order])
    raise AdapterError(f"{source} holds no {wanted} (nor with .bz2): name the folder of LFM-2b", code="import_source")


def _common(heard: Interactions, least: int) -> NDArray[np.bool_]:
    """Whether at least that many users heard the song of each interaction, bool [E]."""
    pairs = np.unique(heard.user.astype(np.int64) << 32 | heard.song) & 0xFFFFFFFF
    return (np.bincount(pairs, minlength=len(heard.songs)) >= least)[heard.song]


def _collection(
    heard: Interactions,
    pools: WeeklyPools,
    users: NDArray[np.int64],
    user_split: Splits,
    columns: dict[str, pa.Array],
    listens: bool,
) -> Collection:
    """Each user's playlist, with the tracks of the pools in order of LFM's ids."""
    kept = pools.song_split != NONE
    row = np.cumsum(kept, dtype=np.int32) - 1
    ids = pa.array([str(user) for user in users.tolist()], pa.string())
    lengths = np.bincount(pools.user, minlength=len(users))
    count = int(kept.sum())
    track_ids = pa.array([str(song) for song in heard.songs[kept].tolist()], pa.string())
    nothing = {"duration_s": pa.nulls(count, pa.float64()), "audio": pa.nulls(count, pa.string())}
    collection = Collection(
        pa.table({"track_id": track_ids, **columns, **nothing}).select(TRACK_SCHEMA.names).cast(TRACK_SCHEMA),
        ids,
        pa.nulls(len(ids), pa.string()),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row[pools.song],
        track_split=pools.song_split[kept],
        playlist_split=user_split,
        listens=_play_counts(heard, kept, row, ids) if listens else None,
        listener_split=user_split,
    )
    return collection.keep_playlists(lengths >= 2)


def _play_counts(
    heard: Interactions, kept: NDArray[np.bool_], row: NDArray[np.int32], ids: pa.StringArray
) -> PlayCounts:
    """Plays of each drawn user and each song of a pool, summed."""
    inside = kept[heard.song]
    pairs, entry = np.unique(heard.user[inside].astype(np.int64) << 32 | heard.song[inside], return_inverse=True)
    plays = np.bincount(entry, weights=heard.plays[inside], minlength=len(pairs))
    user, song = (pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)
    return PlayCounts(ids, user, row[song], plays.astype(np.float32))
