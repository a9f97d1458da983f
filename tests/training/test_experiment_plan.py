"""Who is in which arm: stable, even, independent of everybody else; and the plan's files."""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.http.schemas import AudienceResponse
from service.routes.audience import as_csv
from training.experiment.audience import Member, read_audience
from training.experiment.plan import TREATMENT, arm_of, make_plan, read_plan, write_plan
from training.experiment.rows import ExperimentError

START = datetime(2026, 5, 1, tzinfo=UTC)
ANSWER = {
    "track_id": "label-0042",
    "clusters": [{"mass": 0.7, "share": 1.0, "size": 3, "tracks": ["a"], "listeners": ["ann"]}],
    "listeners": [
        {"listener_id": "ann", "score": 0.91, "cluster": 0},
        {"listener_id": "bob, the 2nd", "score": 0.9, "cluster": 1},
        {"listener_id": "çelik", "score": -0.1, "cluster": 0},
    ],
    "reach": 3,
    "overlaps": [],
    "neighbours": [],
    "release": "20260101T000000-x",
}


def people(n: int) -> list[Member]:
    return [Member(f"u{k}", 1 - k / n, k % 3) for k in range(n)]


def plan_of(members, share=0.5, salt="spring", track="t"):
    return make_plan(track, members, salt, share, START, 0.05)


def test_the_arm_is_the_documented_hash():
    digest = hashlib.sha256('["spring","t","çelik"]'.encode()).digest()
    part = int.from_bytes(digest[:8], "big") / 2**64
    assert arm_of("spring", "t", "çelik", part + 1e-6) == TREATMENT
    assert arm_of("spring", "t", "çelik", part - 1e-6) != TREATMENT


def test_a_listener_stays_in_the_arm_whoever_else_is_there():
    whole = plan_of(people(500))
    arm = {one.listener_id: arm for one, arm in zip(whole.members, whole.arms, strict=True)}
    some = plan_of(people(500)[::-7])
    assert some.arms == [arm[one.listener_id] for one in some.members]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_arms_have_the_share_that_was_asked_for_and_experiments_do_not_follow_one_another(share):
    n = 20_000
    error = 5 * math.sqrt(share * (1 - share) / n)
    first, second, third = (
        [arm == TREATMENT for arm in plan_of(people(n), share, salt, track).arms]
        for salt, track in (("spring", "t"), ("autumn", "t"), ("spring", "other"))
    )
    assert abs(sum(first) / n - share) < error
    for other in (second, third):
        both = sum(a and b for a, b in zip(first, other, strict=True)) / n
        assert abs(both - share**2) < error


def test_more_are_treated_when_the_share_grows_and_none_changes_back():
    small, large = plan_of(people(300), 0.2).arms, plan_of(people(300), 0.6).arms
    assert all(b == TREATMENT for a, b in zip(small, large, strict=True) if a == TREATMENT)


def test_what_was_written_is_read_back(tmp_path):
    strange = ('quoted "one", with\nnewline', "a\rb", "\r", "=1+1", " led by a blank", "\x00", "\u2028", "\ufeff")
    plan = plan_of([*people(40), *map(Member, strange)])
    said = write_plan(plan, tmp_path / "p", "audience.json")
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["plan.csv", "plan.json"]
    assert read_plan(tmp_path / "p") == plan
    assert said == json.loads((tmp_path / "p/plan.json").read_text())
    assert sum(said["arms"].values()) == said["listeners"] == 48
    assert sum(sum(sizes.values()) for sizes in said["clusters"].values()) == 40
    assert said["detectable"] is None or said["detectable"]["absolute"] > 0
    with pytest.raises(ExperimentError, match="holds a plan already"):
        write_plan(plan, tmp_path / "p", "audience.json")


def test_an_answer_of_the_service_and_tables_are_audiences(tmp_path):
    AudienceResponse.model_validate(ANSWER)  # the service's own shape
    (tmp_path / "a.json").write_text(json.dumps(ANSWER))
    track, members = read_audience(tmp_path / "a.json", None)
    assert (track, members[1]) == ("label-0042", Member("bob, the 2nd", 0.9, 1))
    table = '\ufefflistener_id,cluster,name,score\nann,0,x,0.91\n"bob, the 2nd",1,y,0.9\n\nçelik,0,z,-0.1\n'
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    assert read_audience(tmp_path / "a.csv", "label-0042") == (track, members)
    rows = [dict(row) for row in ANSWER["listeners"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_audience(tmp_path / "a.parquet", "label-0042") == (track, members)
    (tmp_path / "ids.csv").write_text("listener_id\r\nann\r\nbob\r\n")
    assert read_audience(tmp_path / "ids.csv", "t")[1] == [Member("ann"), Member("bob")]


def test_the_services_csv_is_an_audience_unless_it_changed_an_id(tmp_path):
    rows = ANSWER["listeners"]
    (tmp_path / "a.csv").write_text(as_csv(rows), encoding="utf-8", newline="")
    found = read_audience(tmp_path / "a.csv", "t")[1]
    assert [one.listener_id for one in found] == [row["listener_id"] for row in rows]
    for name in ("=1+1", " @x", "-5", "\tab"):
        (tmp_path / "a.csv").write_text(as_csv([*rows, {**rows[0], "listener_id": name}]), "utf-8", newline="")
        with pytest.raises(ExperimentError, match=r"a\.csv, line 5: .* led by an apostrophe.*: use the JSON answer"):
            read_audience(tmp_path / "a.csv", "t")
    (tmp_path / "own.csv").write_text("listener_id\n'tis me\n'\n")
    assert len(read_audience(tmp_path / "own.csv", "t")[1]) == 2


def broken(**changes) -> str:
    return json.dumps({**ANSWER, **changes})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"track_id": "t",\n "listeners": [}', "line 2: is no JSON"),
        ("a.json", "[]", "no list of `listeners`"),
        ("a.json", broken(track_id=None), "track_id is missing"),
        ("a.json", broken(listeners=[{"score": 1}] * 2), r"listeners\[0\]: has no listener_id"),
        ("a.json", broken(listeners=[{"listener_id": "a"}, {"listener_id": 5}]), r"listeners\[1\]: listener_id is 5"),
        ("a.json", broken(listeners=[{"listener_id": "\ud800"}] * 2), "surrogate"),
        ("a.json", broken(listeners=[{"listener_id": "a", "score": True}]), r"\[0\]: score is 'True'"),
        ("a.json", broken(listeners=[{"listener_id": "a", "score": math.nan}]), r"\[0\]: score is 'nan'"),
        ("a.json", broken(listeners=[{"listener_id": "a", "cluster": 1.5}]), r"\[0\]: cluster is '1.5'"),
        ("a.json", broken(listeners=[{"listener_id": "a"}] * 2), r"\[1\]: 'a' stands already in .*\[0\]"),
        ("a.json", broken(listeners=[]), "names 0 listeners"),
        ("a.csv", "", "line 1: has no column 'listener_id'; its columns are none"),
        ("a.csv", "user\na\nb\n", "line 1: has no column 'listener_id'; its columns are 'user'"),
        ("a.csv", "listener_id,listener_id\na,b\n", "has the column 'listener_id' twice"),
        ("a.csv", "listener_id\na\nb\na\n", "line 4: 'a' stands already in .*line 2"),
        ("a.csv", "listener_id,score\na,1\nb\n", "line 3: has 1 columns, the header 2"),
        ("a.csv", "listener_id,score\na,1\n,2\n", "line 3: listener_id is missing"),
        ("a.csv", "listener_id,score\na,high\n", "line 2: score is 'high'"),
        ("a.csv", 'listener_id\n"a\n', "is no CSV in UTF-8"),
        ("a.csv", b"listener_id\n\xff\n", "is no CSV in UTF-8"),
        ("a.json", b"\xff", "is no JSON in UTF-8"),
        ("a.json", "[" * 100_000, "is no JSON in UTF-8"),
        ("a.json", broken(listeners=[{"listener_id": "a", "score": 0}]).replace("0}", "1" * 5000 + "}"), "can be read"),
        ("a.json", broken(listeners=[{"listener_id": "a", "score": 10**400}]), r"\[0\]: score is '1000"),
        ("a.parquet", "listener_id\na\n", "cannot be read as Parquet"),
    ],
)
def test_a_broken_audience_is_named_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ExperimentError, match=message) as caught:
        read_audience(tmp_path / name, "t" if not name.endswith("json") else None)
    assert name in caught.value.detail


def test_the_track_is_named_once_and_alike(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ANSWER))
    with pytest.raises(ExperimentError, match="is the audience of 'label-0042', not of 'other'"):
        read_audience(tmp_path / "a.json", "other")
    (tmp_path / "a.csv").write_text("listener_id\na\nb\n")
    with pytest.raises(ExperimentError, match="--track"):
        read_audience(tmp_path / "a.csv", None)
    with pytest.raises(ExperimentError, match=r"none\.csv cannot be read"):
        read_audience(tmp_path / "none.csv", "t")


def test_what_cannot_be_hashed_and_arms_of_nobody_are_refused():
    for salt, track in (("\udcff", "t"), ("s", "\udcff"), ("s", "")):
        with pytest.raises(ExperimentError, match="the plan: "):
            plan_of(people(20), salt=salt, track=track)
    with pytest.raises(ExperimentError, match="all 3 listeners fall into control"):
        plan_of(people(3), share=1e-9)


@pytest.mark.parametrize(
    ("share", "salt", "base"), [(0.0, "s", 0.1), (1.0, "s", 0.1), (0.5, " ", 0.1), (0.5, "s", 1.0)]
)
def test_settings_outside_their_range_are_refused(share, salt, base):
    with pytest.raises(ExperimentError):
        make_plan("t", people(4), salt, share, START, base)


def test_a_plan_that_was_changed_is_refused(tmp_path: Path):
    folder = tmp_path / "p"
    write_plan(plan_of(people(20)), folder, "a.json")
    table, document = (folder / "plan.csv").read_text(), (folder / "plan.json").read_text()
    lines = table.splitlines()
    swapped = lines[4].replace("treatment", "x").replace("control", "treatment").replace("x", "control")
    for text, message in (
        ("\n".join([*lines[:4], swapped, *lines[5:]]), "line 5: 'u3' is not in the arm"),
        ("\n".join([*lines, lines[3]]), "line 22: 'u2' stands already in .*line 4"),
        (table.replace("arm", "group"), "no column 'arm'"),
    ):
        (folder / "plan.csv").write_text(text)
        with pytest.raises(ExperimentError, match=message):
            read_plan(folder)
    for text, message in (
        (document[:40], "cannot be read"),
        (document.replace('"share"', '"part"'), "damaged"),
        (document.replace('"share": 0.5', '"share": NaN'), "damaged"),
        (document.replace('"share": 0.5', '"share": 1e999'), "damaged"),
        ("[]", "damaged"),
        (document.replace('"format": 1', '"format": 2'), "format 2"),
    ):
        (folder / "plan.json").write_text(text)
        with pytest.raises(ExperimentError, match=message):
            read_plan(folder)
    with pytest.raises(ExperimentError, match="experiment plan"):
        read_plan(tmp_path)
