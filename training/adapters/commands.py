"""python -m training import {mpd, lfm}: the importers' command line."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make a data set directory from a public data set that you hold (docs/reproduce.md).", no_args_is_help=True
)

TargetArgument = Annotated[Path, typer.Argument(help="Data set directory to write, whole.", show_default=False)]
SeedOption = Annotated[int, typer.Option(help="Of all that is drawn.")]
AudioOption = Annotated[
    Path | None, typer.Option(help="Folder of audio files named by track id, in up to two levels of sub-folders.")
]
AudioOnlyOption = Annotated[bool, typer.Option("--audio-only", help="Leave out tracks without an audio file.")]


@app.command()
def mpd(
    source: Annotated[Path, typer.Argument(help="Folder of the mpd.slice.*.json.", show_default=False)],
    target: TargetArgument,
    playlists: Annotated[int | None, typer.Option(help="How many playlists, drawn by hash; all by default.")] = None,
    shortest: Annotated[int, typer.Option(help="Least number of tracks of a playlist.")] = 2,
    longest: Annotated[int | None, typer.Option(help="Greatest number of tracks of a playlist.")] = None,
    occurrences: Annotated[int, typer.Option(help="Number of playlists that a track must be in.")] = 1,
    splits: Annotated[str, typer.Option(help="hash: the data set's rule; paper: the pools of LARP.")] = "hash",
    train_tracks: Annotated[int, typer.Option(help="Tracks of the training pool (paper).")] = 100_000,
    valid_playlists: Annotated[int, typer.Option(help="Playlists held out for validation (paper).")] = 100,
    test_playlists: Annotated[int, typer.Option(help="Playlists held out for the test (paper).")] = 100,
    held_out_length: Annotated[int, typer.Option(help="Tracks that a held-out playlist is cut to (paper).")] = 100,
    held_out_shortest: Annotated[int, typer.Option(help="Tracks that must be left of a held-out playlist.")] = 10,
    train_first: Annotated[
        bool, typer.Option("--train-first/--held-out-first", help="Which pool keeps a track of both (paper).")
    ] = True,
    challenge: Annotated[
        Path | None, typer.Option(help="challenge_set.json, to draw the test playlists from (paper).")
    ] = None,
    audio: AudioOption = None,
    audio_only: AudioOnlyOption = False,
    seed: SeedOption = 45,
) -> None:
    """Import the Million Playlist Dataset."""
    from training.adapters.mpd import MpdOptions, import_mpd
    from training.adapters.pools import PoolSettings
    from training.progress import Progress

    pools = PoolSettings(
        train_tracks=train_tracks,
        valid_playlists=valid_playlists,
        test_playlists=test_playlists,
        length=held_out_length,
        shortest=held_out_shortest,
        train_first=train_first,
    )
    options = MpdOptions(
        playlists=playlists,
        shortest=shortest,
        longest=longest,
        occurrences=occurrences,
        splits=splits,
        pools=pools,
        seed=seed,
        challenge=challenge,
        audio=audio,
        audio_only=audio_only,
    )
    import_mpd(source, target, options, Progress())


@app.command()
def lfm(
    source: Annotated[Path, typer.Argument(help="Folder of LFM-2b's .tsv or .tsv.bz2.", show_default=False)],
    target: TargetArgument,
    train_users: Annotated[int, typer.Option(help="Users drawn for training.")] = 1000,
    valid_users: Annotated[int, typer.Option(help="Users drawn for validation.")] = 100,
    test_users: Annotated[int, typer.Option(help="Users drawn for the test.")] = 1000,
    train_songs: Annotated[int, typer.Option(help="Songs of the training pool; 0: all that they heard.")] = 100_000,
    fewest: Annotated[int, typer.Option(help="Least number of songs of a test playlist.")] = 31,
    most: Annotated[int, typer.Option(help="Number of songs that a test playlist is cut to.")] = 99,
    whole_valid: Annotated[bool, typer.Option("--whole-valid", help="Do not cut validation playlists.")] = False,
    interactions: Annotated[str, typer.Option(help="events, counts, or auto: events where they are there.")] = "auto",
    occurrences: Annotated[int, typer.Option(help="Number of drawn users that must have heard a track.")] = 1,
    listens: Annotated[bool, typer.Option("--listens", help="Write listens.parquet, too, for BCL.")] = False,
    audio: AudioOption = None,
    audio_only: AudioOnlyOption = False,
    seed: SeedOption = 45,
) -> None:
    """Import LFM-2b: listening becomes playlists as in LARP, section 4.1."""
    from training.adapters.lfm import LfmOptions, import_lfm
    from training.adapters.weekly import WeeklySettings
    from training.progress import Progress

    weekly = WeeklySettings(
        train_users=train_users,
        valid_users=valid_users,
        test_users=test_users,
        train_songs=train_songs or None,
        fewest=fewest,
        most=most,
        cut_valid=not whole_valid,
    )
    options = LfmOptions(
        weekly=weekly,
        interactions=interactions,
        occurrences=occurrences,
        listens=listens,
        seed=seed,
        audio=audio,
        audio_only=audio_only,
    )
    import_lfm(source, target, options, Progress())
