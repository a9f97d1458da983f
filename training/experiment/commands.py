"""python -m training experiment {plan, read}: the push experiments' command line."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Measure what showing a track to its audience brings: split the audience, then compare the arms.",
    no_args_is_help=True,
)


@app.command()
def plan(
    audience: Annotated[
        Path,
        typer.Argument(help="An answer of GET /audience (.json), or a table with listener_id.", show_default=False),
    ],
    salt: Annotated[str, typer.Option(help="Name of the experiment: another name deals anew.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the plan.")] = Path("var/experiment"),
    track: Annotated[str | None, typer.Option(help="Id of the track, where the file does not say it.")] = None,
    share: Annotated[float, typer.Option(help="Share of the listeners to treat.")] = 0.5,
    base_rate: Annotated[
        float, typer.Option(help="Share of listeners with an effective play that is expected without the push.")
    ] = 0.05,
    start: Annotated[
        str | None, typer.Option(help="When the push begins, ISO 8601 (UTC where it names no zone); by default now.")
    ] = None,
) -> None:
    """Split an audience by hash into treatment and control; write plan.csv and plan.json."""
    from training.experiment.audience import read_audience
    from training.experiment.plan import make_plan, write_plan

    track_id, members = read_audience(audience, track)
    made = make_plan(track_id, members, salt, share, _moment(start), base_rate)
    said = write_plan(made, out, audience.name)
    typer.echo(f"{out}: {made.sizes[0]} listeners to show {track_id!r} to, {made.sizes[1]} not to")
    for cluster, sizes in said["clusters"].items():
        typer.echo(f"  cluster {cluster}: {sizes['treatment']} and {sizes['control']}")
    rise = said["detectable"]
    typer.echo(
        "the arms are too small to find any rise of the base rate"
        if rise is None
        else f"a base rate of {base_rate:.2%} must rise by {100 * rise['absolute']:.2f} percentage points "
        f"({rise['relative']:+.0%}) to be found with power {said['power']:g}"
    )


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(help="Folder of the plan.", show_default=False)],
    events: Annotated[list[Path], typer.Argument(help="Event files, CSV or Parquet.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="File of the figures; by default report.json beside the plan.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="An effective play lasts so long,")] = 30.0,
    completed: Annotated[float, typer.Option(help="or this share of the track.")] = 0.5,
    by_cluster: Annotated[bool, typer.Option("--by-cluster", help="Compare the arms of each cluster too.")] = False,
    draws: Annotated[int, typer.Option(help="Of the bootstrap and the permutation test.", min=100)] = 10_000,
    seed: Annotated[int, typer.Option(help="Of both.", min=0)] = 20230430,
) -> None:
    """Compare the arms: effective plays and favourites, with intervals and tests."""
    from training.experiment.events import Effective, tally
    from training.experiment.outcome import Draws
    from training.experiment.plan import read_plan
    from training.experiment.report import Reading

    rule, made = Effective(seconds, completed), read_plan(folder)
    reading = Reading.of(made, tally(made, events, rule), rule, Draws(draws, seed), by_cluster=by_cluster)
    typer.echo(reading.markdown())
    target = out or folder / "report.json"
    staged = target.with_name(f"{target.name}.part")
    staged.write_text(
        json.dumps(reading.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    os.replace(staged, target)


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time like 2026-05-31T18:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
