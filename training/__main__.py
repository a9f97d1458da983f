"""python -m training {prepare, larp, bcl, evaluate, publish, demo}: the trainer's command line."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import DebutError
from training.progress import Progress, clock_text

if TYPE_CHECKING:
    from training.pipeline import Pipeline

app = typer.Typer(
    help="Train track vectors from a data set directory and publish a release. The steps in order: prepare, larp, bcl, "
    "evaluate, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataArgument = Annotated[Path, typer.Argument(help="Data set directory (docs/data.md).", show_default=False)]
WorkOption = Annotated[Path, typer.Option(help="Folder where the steps leave their results for one another.")]
ReleasesOption = Annotated[Path, typer.Option(help="Folder of releases.")]
SeedOption = Annotated[int, typer.Option(help="Same seed on the same machine: same weights.")]
PresetOption = Annotated[str, typer.Option(help="Size of the model and length of the training.")]

WORK = Path("var/work")
RELEASES = Path("var/releases")


def _open(data: Path, work: Path, fields: tuple[str, ...] = ()) -> "Pipeline":
    from training.data.dataset import DataSet
    from training.pipeline import Pipeline
    from training.workspace import Workspace

    return Pipeline(DataSet.open(data, attributes=fields), Workspace(work), Progress())


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _fields(work: Path) -> tuple[str, ...]:
    """The columns that BCL was trained with: what the catalogue and the baselines must see too."""
    from index.tracks import Track
    from training.bcl.config import load_config
    from training.workspace import Workspace

    space = Workspace(work)
    specs = load_config(space.needs(space.bcl, "bcl")).fields
    return tuple(spec.column for spec in specs if spec.kind != "dense" and spec.column not in Track.__slots__)


@app.command()
def prepare(data: DataArgument, work: WorkOption = WORK) -> None:
    """Check the data set, and decode every audio file once."""
    _open(data, work).prepare()


@app.command()
def larp(
    data: DataArgument,
    work: WorkOption = WORK,
    preset: PresetOption = "paper",
    seed: SeedOption = 0,
    clauses: Annotated[str, typer.Option(help="Clauses of the caption, by comma.")] = "title,artist,album",
    audio: Annotated[str | None, typer.Option(help="Directory of a CLAP or ClapAudioModel checkpoint.")] = None,
    text: Annotated[str | None, typer.Option(help="Directory of a BERT-like checkpoint with tokenizer.json.")] = None,
) -> None:
    """Train the audio and the text tower in three stages, export them, embed every track."""
    from training.larp.config import larp_preset

    config = larp_preset(preset, seed=seed, clauses=_names(clauses))
    config = replace(
        config,
        audio=replace(config.audio, checkpoint=audio or config.audio.checkpoint),
        text=replace(config.text, checkpoint=text or config.text.checkpoint),
    )
    _open(data, work).train_larp(config)


@app.command()
def bcl(
    data: DataArgument,
    work: WorkOption = WORK,
    preset: PresetOption = "paper",
    seed: SeedOption = 0,
    fields: Annotated[str, typer.Option(help="Further columns of tracks.parquet to learn from, by comma.")] = "",
) -> None:
    """Train the matcher on fields and co-listening, export it, match every track."""
    from training.bcl.config import bcl_preset

    _open(data, work, _names(fields)).train_bcl(bcl_preset(preset, seed=seed))


@app.command()
def evaluate(data: DataArgument, work: WorkOption = WORK) -> None:
    """Measure on cold test tracks, beside the baselines."""
    from training.evaluate import Protocols

    _open(data, work, _fields(work)).evaluate(Protocols())


@app.command()
def publish(data: DataArgument, work: WorkOption = WORK, releases: ReleasesOption = RELEASES) -> None:
    """Write a release with every track, and make it the current one."""
    _open(data, work, _fields(work)).publish(releases)


@app.command()
def demo(
    work: WorkOption = Path("var/demo/work"),
    releases: ReleasesOption = Path("var/demo/releases"),
    seed: SeedOption = 0,
) -> None:
    """Do all of it for the demo songs."""
    from training import demo as demo_release

    started = time.monotonic()
    progress = Progress()
    demo_release.run(work, releases, seed, progress)
    progress.say(f"the demo release took {clock_text(time.monotonic() - started)}")


def main() -> int:
    """Run the command line; what a user can mend is one sentence and exit code 2."""
    try:
        app()
    except DebutError as error:
        print(f"training: {error.detail}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training: {error.filename or 'a file'} cannot be used: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
