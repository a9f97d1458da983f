"""python -m training {prepare, larp, bcl, evaluate, publish, report, report-bcl, import, experiment, demo}: the command
line.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from index.errors import DebutError
from training.adapters.commands import app as imports
from training.experiment.commands import app as experiments
from training.progress import Progress, clock_text

if TYPE_CHECKING:
    from training.bcl.config import BclConfig
    from training.larp.config import LarpConfig
    from training.pipeline import Pipeline

app = typer.Typer(
    help="Train track vectors from a data set directory and publish a release. The steps in order: prepare, larp, bcl, "
    "evaluate, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(imports, name="import", help="Write a data set directory from a published data set's raw files.")
app.add_typer(experiments, name="experiment")

DataArgument = Annotated[Path, typer.Argument(help="Data set directory (docs/data.md).", show_default=False)]
WorkOption = Annotated[Path, typer.Option(help="Folder where the steps leave their results for one another.")]
ReleasesOption = Annotated[Path, typer.Option(help="Folder of releases.")]
SeedOption = Annotated[int, typer.Option(help="Same seed on the same machine: same weights.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Do not go on with a training that was broken off.")]
PresetOption = Annotated[str, typer.Option(help="Size of the model and length of the training.")]

ClausesOption = Annotated[str, typer.Option(help="Clauses of the caption, by comma.")]
AudioOption = Annotated[str | None, typer.Option(help="Audio tower's checkpoint: a directory, or a name on the hub.")]
TextOption = Annotated[str | None, typer.Option(help="Text tower's checkpoint: a directory, or a name on the hub.")]
TowersOption = Annotated[str | None, typer.Option(help="Towers to train, by comma; by default the preset's.")]
FreezeOption = Annotated[
    bool | None, typer.Option("--freeze/--no-freeze", help="Train heads on the encoders' outputs, computed once.")
]
BatchOption = Annotated[int | None, typer.Option(help="Tracks that meet in a step.")]
MicroOption = Annotated[int | None, typer.Option(help="Tracks encoded at once; the result is the same.")]
FieldsOption = Annotated[str, typer.Option(help="Further columns of tracks.parquet to learn from, by comma.")]
PairsOption = Annotated[
    str | None, typer.Option(help="What makes two tracks alike: itemcf or swing; by default the preset's.")
]

WORK = Path("var/work")
RELEASES = Path("var/releases")
CLAUSES = "title,artist,album"


def _open(data: Path, work: Path, fields: tuple[str, ...] = ()) -> "Pipeline":
    from training.data.dataset import DataSet
    from training.pipeline import Pipeline
    from training.workspace import Workspace

    return Pipeline(DataSet.open(data, attributes=fields), Workspace(work), Progress())


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(count) for count in _names(text))
    except ValueError:
        counts = (0,)
    if any(count < 1 for count in counts):
        raise typer.BadParameter(f"{text!r} is no list of numbers above 0, by comma")
    return counts


def _fields(work: Path) -> tuple[str, ...]:
    """The columns that BCL was trained with: what the catalogue and the baselines must see too."""
    from index.tracks.track import Track
    from training.bcl.config import load_config
    from training.workspace import Workspace

    space = Workspace(work)
    specs = load_config(space.has(space.bcl, "bcl")).fields
    return tuple(spec.column for spec in specs if spec.kind != "dense" and spec.column not in Track.__slots__)


@app.command()
def prepare(data: DataArgument, work: WorkOption = WORK) -> None:
    """Check the data set, and decode every audio file once."""
    _open(data, work).prepare()


def _larp_config(
    preset: str, seed: int, clauses: str, towers: str | None, audio: str | None, text: str | None, **given: Any
) -> "LarpConfig":
    """The preset with what was given on the command line."""
    from training.larp.presets import larp_preset

    given["towers"] = None if towers is None else _names(towers)
    changes = {name: value for name, value in given.items() if value is not None}
    config = larp_preset(preset, seed=seed, clauses=_names(clauses), **changes)
    return replace(
        config,
        audio=replace(config.audio, checkpoint=audio or config.audio.checkpoint),
        text=replace(config.text, checkpoint=text or config.text.checkpoint),
    )


@app.command()
def larp(
    data: DataArgument,
    work: WorkOption = WORK,
    preset: PresetOption = "paper",
    seed: SeedOption = 0,
    clauses: ClausesOption = CLAUSES,
    audio: AudioOption = None,
    text: TextOption = None,
    towers: TowersOption = None,
    freeze: FreezeOption = None,
    batch_size: BatchOption = None,
    micro_batch: MicroOption = None,
    fresh: FreshOption = False,
) -> None:
    """Train the audio and the text tower in three stages, export them, embed every track.

    `torchrun --nproc-per-node N -m training larp ...` trains on N processes.
    """
    given = {"freeze": freeze, "batch_size": batch_size, "micro_batch": micro_batch}
    config = _larp_config(preset, seed, clauses, towers, audio, text, **given)
    _open(data, work).train_larp(config, fresh=fresh)


@app.command()
def report(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("var/report"),
    work: WorkOption = WORK,
    preset: PresetOption = "cpu",
    seed: SeedOption = 0,
    clauses: ClausesOption = CLAUSES,
    audio: AudioOption = None,
    text: TextOption = None,
    towers: TowersOption = None,
    freeze: FreezeOption = None,
    batch_size: BatchOption = None,
    micro_batch: MicroOption = None,
    transfer: Annotated[
        list[Path] | None, typer.Option(help="Another data set to train on and test here (Table 4); repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Values of J for Figure 4, by comma; empty for none.")] = "1,5,10,30",
    recommenders: Annotated[bool, typer.Option(help="Fit DropoutNet and CLCRec too (Table 2).")] = True,
    checks: Annotated[bool, typer.Option("--checks", help="Measure the sensitivity to tau, m and the queue.")] = False,
    repeats: Annotated[int, typer.Option(help="Draws of seeds from each test playlist.")] = 1,
    min_tracks: Annotated[int, typer.Option(help="Test playlists with fewer test tracks are left out.")] = 2,
) -> None:
    """Train LARP in every variant and write the paper's tables and figures for a data set, as Markdown and PNG."""
    from training.data.dataset import DataSet
    from training.evaluation.continuation import ContinuationProtocol
    from training.report.report import Scope, write_report

    given = {"freeze": freeze, "batch_size": batch_size, "micro_batch": micro_batch}
    config = _larp_config(preset, seed, clauses, towers, audio, text, **given)
    pipeline = _open(data, work)
    others = [pipeline.beside(DataSet.open(path)).study(config) for path in transfer or []]
    protocol = ContinuationProtocol(repeats=repeats, min_tracks=min_tracks)
    scope = Scope(protocol, _counts(seeds), recommenders, checks)
    write_report(pipeline.study(config), out, scope, others, pipeline.progress)


@app.command("report-bcl")
def report_bcl(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("var/report-bcl"),
    work: WorkOption = WORK,
    preset: PresetOption = "small",
    fields: FieldsOption = "",
    pairs: PairsOption = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each variant.", min=1)] = 3,
    sweeps: Annotated[bool, typer.Option("--sweeps", help="Vary lambda, tau, alpha, k and T_g too.")] = False,
) -> None:
    """Train BCL in every variant and write what each of its ideas is worth for a data set with listens.

    Reads LARP's vectors where `larp` left them in --work, else the attributes alone.
    """
    from training.report.matching_report import MatchingScope, write_matching_report

    pipeline = _open(data, work, _names(fields))
    study = pipeline.matching_study(_bcl_config(preset, 0, pairs), _names(fields))
    write_matching_report(study, out, MatchingScope(seeds, sweeps), pipeline.progress)


def _bcl_config(preset: str, seed: int, pairs: str | None) -> "BclConfig":
    from training.bcl.config import bcl_preset

    return bcl_preset(preset, seed=seed, **({} if pairs is None else {"pairs": pairs}))


@app.command()
def bcl(
    data: DataArgument,
    work: WorkOption = WORK,
    preset: PresetOption = "paper",
    seed: SeedOption = 0,
    fields: FieldsOption = "",
    pairs: PairsOption = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Without LARP's vectors: for catalogues with nothing to hear or to read.")
    ] = False,
    fresh: FreshOption = False,
) -> None:
    """Train the matcher on fields and co-listening, export it, match every track."""
    config, further = _bcl_config(preset, seed, pairs), _names(fields)
    _open(data, work, further).train_bcl(config, fresh=fresh, further=further, alone=alone)


@app.command()
def evaluate(
    data: DataArgument,
    work: WorkOption = WORK,
    seeds: Annotated[str, typer.Option(help="Counts of given tracks, by comma: a table each, e.g. 1,5,10,25.")] = "",
    by_homogeneity: Annotated[
        bool, typer.Option("--by-homogeneity", help="Tables by how alike a playlist's tracks are.")
    ] = False,
) -> None:
    """Measure on cold test tracks, beside the baselines: all of them, other artists' and new artists' alone."""
    from training.evaluate import Protocols
    from training.evaluation.questions import Questions

    asked = Questions(seeds=_counts(seeds), homogeneity=by_homogeneity)
    _open(data, work, _fields(work)).evaluate(Protocols(questions=asked))


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
