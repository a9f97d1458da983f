"""Events against a plan: what counts, what is set aside and told, and the report by the command line."""

import csv
import inspect
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.__main__ import main
from training.experiment import commands
from training.experiment.audience import Member
from training.experiment.events import Effective, tally
from training.experiment.outcome import Draws, measures
from training.experiment.plan import TREATMENT, Plan, make_plan, read_plan, write_plan
from training.experiment.report import Reading
from training.experiment.rows import ExperimentError

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
LATER = "2026-05-01T15:00:00+02:00"  # 13:00 UTC
HEADER = "listener_id,track_id,event,time,played_s,duration_s,completed\n"
QUICK = Draws(draws=500)


def plan_of(n: int, share: float = 0.5) -> Plan:
    return make_plan("t", [Member(f"u{k}", 0.5, k % 2) for k in range(n)], "spring", share, START, 0.05)


def written(path: Path, lines: str, header: str = HEADER) -> Path:
    path.write_text(header + lines, encoding="utf-8")
    return path


def test_a_play_is_effective_by_its_seconds_or_by_its_part(tmp_path):
    events = written(
        tmp_path / "e.csv",
        f"u0,t,play,{LATER},30,,\n"
        f"u1,t,play,{LATER},29.9,,\n"
        f"u2,t,play,{LATER},10,20,\n"
        f"u3,t,play,{LATER},9.9,20,\n"
        f"u4,t,play,{LATER},,,0.5\n"
        f"u5,t,play,{LATER},,,0.49\n"
        f"u6,t,play,{LATER},10,20,0.1\n",  # what the player says goes before what we divide
    )
    assert list(tally(plan_of(7), [events], Effective()).effective) == [1, 0, 1, 0, 1, 0, 0]
    assert list(tally(plan_of(7), [events], Effective(5, 0.9)).effective) == [1, 1, 1, 1, 0, 0, 1]
    assert list(tally(plan_of(7), [events], Effective()).plays) == [1] * 7


def test_what_does_not_count_is_counted_by_its_reason(tmp_path):
    events = written(
        tmp_path / "e.csv",
        f"u0,t,play,{LATER},40,,\n"
        f"u0,t,play,{LATER},40,,\n"  # repeated
        "u0,t,play,2026-05-01T13:00:00Z,40,,\n"  # the same moment in another zone
        "u0,t,play,2026-05-01T13:00:01,40,,\n"  # a second later
        "u0,t,play,2026-05-01T11:59:59Z,40,,\n"  # early
        "u0,t,favourite,1777636799,,,\n"  # early
        "u0,t,favourite,1777636800,,,\n"  # at the start
        f"u1,other,play,{LATER},40,,\n"
        f"x1,t,play,{LATER},40,,\nx1,t,favourite,{LATER},,,\nx2,t,play,{LATER},40,,\n",
    )
    found = tally(plan_of(2), [events], Effective())
    assert (found.read, found.counted, found.repeated, found.early) == (11, 3, 2, 2)
    assert (found.other_tracks, found.outside, found.strangers, found.untimed) == (1, 3, {"x1", "x2"}, 0)
    assert list(found.effective) == [2, 0]
    assert list(found.favourite) == [True, False]
    twice = tally(plan_of(2), [events, events], Effective())
    assert (twice.counted, twice.repeated) == (3, 7)


def test_csv_and_parquet_say_the_same(tmp_path):
    rows = [
        {"listener_id": f"u{k % 5}", "track_id": "t", "event": "play", "time": START + timedelta(minutes=k),
         "played_s": 7.0 * k, "duration_s": None if k % 3 else 90.0}
        for k in range(-3, 12)
    ]  # fmt: skip
    lines = "".join(
        f"{r['listener_id']},t,play,{r['time'].isoformat()},{abs(r['played_s'])},{r['duration_s'] or ''},\n"
        for r in rows
    )
    table = pa.Table.from_pylist([{**row, "played_s": abs(row["played_s"])} for row in rows])
    ours = tally(plan_of(5), [written(tmp_path / "e.csv", lines)], Effective())
    for unit in ("us", "ns", "ms"):
        place = table.schema.get_field_index("time")
        times = table["time"].cast(pa.timestamp(unit, "UTC"))
        pq.write_table(table.set_column(place, "time", times), tmp_path / "e.parquet")
        theirs = tally(plan_of(5), [tmp_path / "e.parquet"], Effective())
        assert list(theirs.effective) == list(ours.effective)
        assert replace(theirs, plays=0, effective=0, favourite=0) == replace(ours, plays=0, effective=0, favourite=0)
    assert ours.early == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f"u0,t,skip,{LATER},1,,\n", "line 2: event is 'skip'"),
        (f"u0,t,favourite,{LATER},,,\nu0,t,play,{LATER},,,\n", "line 3: a play needs played_s or completed"),
        (f"u0,t,play,{LATER},-1,,\n", "line 2: played_s is '-1'"),
        (f"u0,t,play,{LATER},nan,,\n", "line 2: played_s is 'nan'"),
        (f"u0,t,play,{LATER},5,0,\n", "line 2: duration_s is 0"),
        (f"u0,t,play,{LATER},,,55\n", "line 2: completed is 55; a share"),
        ("u0,t,play,yesterday,5,,\n", "line 2: time is 'yesterday'"),
        ("u0,t,play,1e400,5,,\n", "line 2: time is '1e400'"),
        ("u0,t,play,,5,,\n", "line 2: time is missing"),
        (f",t,play,{LATER},5,,\n", "line 2: listener_id is missing"),
        (f"u0,,play,{LATER},5,,\n", "line 2: track_id is missing"),
        (f"u0,t,play,{LATER}\n", "line 2: has 4 columns, the header 7"),
    ],
)
def test_broken_events_are_named_with_file_and_line(tmp_path, lines, message):
    with pytest.raises(ExperimentError, match=message) as caught:
        tally(plan_of(2), [written(tmp_path / "e.csv", lines)], Effective())
    assert "e.csv" in caught.value.detail


def test_broken_parquet_is_named_with_file_and_row(tmp_path):
    rows = [{"listener_id": "u0", "track_id": "t", "event": event} for event in ("favourite", "like")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    with pytest.raises(ExperimentError, match=r"e\.parquet, row 1: event is 'like'"):
        tally(plan_of(2), [tmp_path / "e.parquet"], Effective())
    with pytest.raises(ExperimentError, match="needs seconds above 0"):
        Effective(0, 0.5)


def test_times_that_python_cannot_hold_are_named(tmp_path):
    times = pa.array([2**40], pa.timestamp("s", "UTC"))
    columns = {name: pa.array([value]) for name, value in (("listener_id", "u0"), ("track_id", "t"), ("event", "play"))}
    pq.write_table(pa.table({**columns, "time": times, "played_s": pa.array([40.0])}), tmp_path / "e.parquet")
    with pytest.raises(ExperimentError, match=r"e\.parquet, from row 0 on: cannot be read"):
        tally(plan_of(2), [tmp_path / "e.parquet"], Effective())


def test_a_tiny_p_is_not_zero_and_every_test_is_counted(tmp_path):
    plan = plan_of(400)
    lines = (f"{one.listener_id},t,play,{LATER},40,,\n" for one, arm in zip(plan.members, plan.arms, strict=True)
             if arm == TREATMENT)  # fmt: skip
    found = tally(plan, [written(tmp_path / "e.csv", "".join(lines))], Effective())
    reading = Reading.of(plan, found, Effective(), QUICK, by_cluster=True)
    plays, reach = reading.to_json()["measures"][:2]
    assert 0 < reach["p"] < 1e-60
    assert plays["relative"] == {"value": None, "low": None, "high": None}
    assert "| ∞ | " in reading.markdown()
    assert "not corrected for there being 12" in reading.markdown()  # four of all, four a cluster


def simulated(path: Path, plan: Plan, rng: np.random.Generator, lift: float) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER.strip().split(","))
        for one, arm in zip(plan.members, plan.arms, strict=True):
            rate = 0.4 * (1 + lift * (arm == TREATMENT)) * (1 + 2 * (rng.random() < 0.1))
            for minute in range(rng.poisson(rate)):
                moment = (START + timedelta(minutes=minute)).isoformat()
                table.writerow([one.listener_id, "t", "play", moment, rng.choice([8, 60, 200]), 210, ""])
            if rng.random() < 0.1:
                table.writerow([one.listener_id, "t", "favourite", START.isoformat(), "", "", ""])
    return path


def test_measures_are_those_of_a_count_by_hand(tmp_path):
    plan = plan_of(300)
    path = simulated(tmp_path / "e.csv", plan, np.random.default_rng(6), 0.4)
    events = list(csv.DictReader(path.read_text().splitlines()))
    plays, reach, keen, all_keen = measures(plan, tally(plan, [path], Effective()), QUICK)
    arm_of = {one.listener_id: arm for one, arm in zip(plan.members, plan.arms, strict=True)}
    for arm in ("treatment", "control"):
        mine = [event for event in events if arm_of[event["listener_id"]] == arm]
        effective = [e["listener_id"] for e in mine if e["event"] == "play" and float(e["played_s"]) >= 30]
        favoured = {e["listener_id"] for e in mine if e["event"] == "favourite"}
        n, players = plan.arms.count(arm), set(effective)
        for measure, count, of in (
            (plays, len(effective), n),
            (reach, len(players), n),
            (keen, len(favoured & players), len(players)),
            (all_keen, len(favoured), n),
        ):
            found = getattr(measure, arm)
            assert (found.count, found.of) == (count, of)
    assert plays.difference.value == plays.treatment.value - plays.control.value


def test_clusters_are_parts_of_the_whole(tmp_path):
    plan = plan_of(200)
    found = tally(plan, [simulated(tmp_path / "e.csv", plan, np.random.default_rng(2), 0)], Effective())
    reading = Reading.of(plan, found, Effective(), QUICK, by_cluster=True)
    assert list(reading.clusters) == [0, 1]
    for place, whole in enumerate(reading.whole):
        for arm in ("treatment", "control"):
            parts = [getattr(part[place], arm) for part in reading.clusters.values()]
            assert sum(part.count for part in parts) == getattr(whole, arm).count
    assert "## Cluster 1" in reading.markdown()


def test_an_effect_is_found_and_none_is_not_invented(tmp_path):
    """A/B once; A/A forty times, at 5 %: more than 8 of 40 happen once in 2,000 such tests."""
    rng = np.random.default_rng(12)
    plan = plan_of(2000)
    found = tally(plan, [simulated(tmp_path / "e.csv", plan, rng, 0.5)], Effective())
    plays = measures(plan, found, QUICK)[0]
    print(f"seed 12: {plays.relative}")
    assert plays.p < 0.01
    assert plays.relative.low < 0.5 < plays.relative.high
    small = plan_of(200)
    alike = [
        measures(small, tally(small, [simulated(tmp_path / "e.csv", small, rng, 0)], Effective()), QUICK)[0].p
        for _ in range(40)
    ]
    print(f"seed 12: {sum(p < 0.05 for p in alike)} of 40 under .05")
    assert sum(p < 0.05 for p in alike) <= 8


def test_lost_listeners_are_a_loud_warning(tmp_path):
    plan = plan_of(600)
    write_plan(plan, tmp_path / "p", "a.json")
    table = (tmp_path / "p/plan.csv").read_text().splitlines(keepends=True)
    lost = [line for line in table if ",treatment," in line][:120]
    (tmp_path / "p/plan.csv").write_text("".join(line for line in table if line not in lost))
    fewer = read_plan(tmp_path / "p")
    nothing = tally(fewer, [written(tmp_path / "e.csv", "")], Effective())
    reading = Reading.of(fewer, nothing, Effective(), QUICK, by_cluster=False)
    assert "**WARNING** SAMPLE RATIO MISMATCH" in reading.markdown().split("\n")[2]
    assert "names 480 listeners, it was made with 600" in reading.warnings[1]
    assert "No event counts" in reading.warnings[2]
    assert reading.to_json()["sample_ratio"]["mismatch"] is True
    json.dumps(reading.to_json(), allow_nan=False)
    whole = Reading.of(plan, tally(plan, [tmp_path / "e.csv"], Effective()), Effective(), QUICK, by_cluster=False)
    assert not whole.to_json()["sample_ratio"]["mismatch"]


def test_the_command_line_has_the_defaults_of_the_code():
    asked = {name: given.default for name, given in inspect.signature(commands.read).parameters.items()}
    assert Draws(asked["draws"], asked["seed"]) == Draws()
    assert Effective(asked["seconds"], asked["completed"]) == Effective()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    def run(*words: str | Path) -> tuple[int, str, str]:
        """Return exit code, output and errors."""
        monkeypatch.setattr(sys, "argv", ["training", "experiment", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            sys.exit(main())
        return left.value.code, *capsys.readouterr()

    lines = "".join(f"u{k},{k / 100},{k % 2}\n" for k in range(100))
    audience = written(tmp_path / "a.csv", lines, "listener_id,score,cluster\n")
    folder = tmp_path / "p"
    made = run("plan", audience, "--salt", "spring", "--track", "t", "--out", folder, "--start", "2026-05-01T12:00:00")
    assert made[0] == 0, made
    assert "cluster 1: " in made[1]
    assert "to be found with power 0.8" in made[1]
    plan = read_plan(folder)
    assert plan.start == START
    events = simulated(tmp_path / "e.csv", plan, np.random.default_rng(1), 0.5)
    done = run("read", folder, events, "--by-cluster", "--draws", "200", "--seed", "3")
    assert done[0] == 0, done
    assert "30 s or 50% of the track" in done[1]
    assert "200 draws, seed 3" in done[1]
    report = json.loads((folder / "report.json").read_text())
    assert (report["seed"], report["draws"], set(report["clusters"])) == (3, 200, {"0", "1"})
    broken = run("read", folder, written(tmp_path / "b.csv", "u0,t\n"))
    assert broken[0] == 2
    assert broken[2].startswith("training: ")
    assert "b.csv, line 2: has 2 columns" in broken[2]
    assert run("plan", audience, "--salt", "s", "--start", "soon")[0] == 2
