"""Ten times what the service can do: it refuses, and goes on doing what it did (at length: benchmarks/overload.py)."""

import json

import pytest
from service_process import RunningService

from benchmarks.load import as_answered, at_rate, request
from benchmarks.overload import resident

CALM_S, OVERLOAD_S = 2.0, 3.0
CLIENTS = {"ingest": 3, "continue": 3, "audience": 2}


@pytest.fixture(scope="module")
def running(releases, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("overload") / "ledger.sqlite"
    told = {"decode_workers": 1, "queue_size": 8, "search_queue": 8, "log_level": "error"}
    with RunningService(releases, ledger, **told) as running:
        yield running


def test_ten_times_too_much_is_refused_and_the_rest_done_and_kept(running, clip):
    url = running.client.base_url
    seeds = [track["track_id"] for track in running.client.get("/tracks", params={"q": "a"}).json()["tracks"][:5]]
    playlist = json.dumps({"seeds": seeds, "k": 20}).encode()

    def kinds(name: str):
        return {
            "ingest": lambda n: request("POST", f"/ingest-track?track_id={name}-{n}", clip, "audio/ogg"),
            "continue": lambda _: request("POST", "/continue-playlist", playlist, "application/json"),
            "audience": lambda _: request("GET", f"/audience/{seeds[0]}?limit=20"),
        }

    calm = as_answered((url.host, url.port), kinds("calm"), CLIENTS, CALM_S)
    assert all(not answers.others and answers.accepted for answers in calm.values())
    before = resident(running.process.pid)
    rates = {kind: 10 * len(answers.accepted) / CALM_S for kind, answers in calm.items()}
    crowd = at_rate((url.host, url.port), kinds("crowd"), rates, OVERLOAD_S, connections=100)
    grown = resident(running.process.pid) - before
    for kind, answers in crowd.items():
        refused = answers.statuses[503] + answers.statuses[429]
        done, calmly = len(answers.accepted) / OVERLOAD_S, len(calm[kind].accepted) / CALM_S
        print(
            f"{kind}: {rates[kind]:.0f}/s offered, {done:.0f}/s done (before {calmly:.0f}/s), p99 "
            f"{answers.percentile(99):.2f} s; {refused} refused, {answers.unsent} not sent"
        )
        assert answers.others == {}
        assert answers.hurried == 0
        assert answers.accepted
    assert sum(answers.statuses[503] for answers in crowd.values())
    assert (
        sum(len(answers.accepted) for answers in crowd.values())
        > sum(len(answers.accepted) for answers in calm.values()) / 4
    ), "it does next to nothing any more"
    print(f"{grown / 2**20:.0f} MiB more than before")
    assert grown < 200 * 2**20
    ids = {f"{name}-{n}" for name, seen in (("calm", calm), ("crowd", crowd)) for n in seen["ingest"].accepted}
    assert all(running.client.get(f"/tracks/{track_id}").status_code == 200 for track_id in ids)
    assert running.client.get("/readyz").status_code == 200
