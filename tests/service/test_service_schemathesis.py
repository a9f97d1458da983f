"""Schemathesis against a real process: what the OpenAPI document allows, and nearly allows, on every route.

No answer is a 5xx or anything else that the document does not know, what the document forbids is refused, no route
works without its key, and what was taken down is gone. Every route is asked for something it can do as well.
"""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from service_process import ROOT, RunningService
from service_uploads import ogg, tone, upload
from test_service_openapi import ROUTES

from service.http.keys import new_key

HERE = Path(__file__).resolve().parent
LIMIT_S = 600
OPERATIONS = {(method.upper(), path) for path, methods in ROUTES.items() for method in methods}

# Half of the ids are ids that are here. Whether a seed is known, a sound can be decoded or a day is in the calendar is
# more than a schema can say: there, a request that keeps it may be refused.
CONFIGURATION = """
hooks = "service_any_sound"
continue-on-failure = true
[cache]
enabled = false
[generation]
database = "none"
[dictionaries.tracks]
values = {tracks}
[parameters]
"path.track_id" = {{ dictionary = "tracks", probability = 0.5 }}
"body.seeds.[*]" = {{ dictionary = "tracks", probability = 0.5 }}
"body.exclude.[*]" = {{ dictionary = "tracks", probability = 0.5 }}
"body.negatives.[*]" = {{ dictionary = "tracks", probability = 0.5 }}
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 409]
[[operations]]
include-path = "/continue-playlist"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 409, 422]
[[operations]]
include-path = "/ingest-track"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 201, 202, 409, 415, 422]
"""


def any_request(url: str, key: str, folder: Path, tracks: list[str], examples: int) -> None:
    """Run Schemathesis, all checks in all phases, `examples` random requests an operation; fail as it does."""
    (folder / "schemathesis.toml").write_text(CONFIGURATION.format(tracks=tracks))
    seed = random.SystemRandom().randrange(2**32)
    options = [f"--header=Authorization:Bearer {key}", f"--max-examples={examples}", f"--seed={seed}", "--no-color"]
    ran = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks=all", *options],
        cwd=folder,  # whatever it writes down
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    print(ran.stdout, ran.stderr)
    assert ran.returncode == 0, f"seed {seed}"


def answered(service: RunningService) -> Counter[tuple[str, str, int]]:
    """Return how often the service answered (method, route, status), by its own count."""
    line = r'request_seconds_count\{method="(\w+)",route="(.+)",status="(\d+)"\} (\S+)'
    found = re.findall(line, service.client.get("/metrics").text)
    return Counter({(method, route, int(status)): int(float(count)) for method, route, status, count in found})


@pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.long)])
def test_no_request_gets_an_answer_that_the_document_does_not_know(releases, tmp_path, examples):
    key, line = new_key("all", "read,write")
    (tmp_path / "keys").write_text(f"{line}\n")
    with RunningService(releases, tmp_path / "ledger", keys_file=tmp_path / "keys") as service:
        service.client.headers["authorization"] = f"Bearer {key}"
        tracks = [f"t{number}" for number in range(4)]
        for number, track_id in enumerate(tracks):
            sound = ogg(tone(1.1, 300.0 + 70 * number, seed=number))
            assert upload(service.client, sound, track_id=track_id, title="Song").status_code == 201
        before = answered(service)
        found = service.client.get("/tracks", params={"q": "a", "limit": 20}).json()["tracks"]  # of the release
        any_request(str(service.client.base_url), key, tmp_path, tracks + [one["track_id"] for one in found], examples)
        seen = answered(service) - before
    for (method, route, status), count in sorted(seen.items()):
        print(f"{count:6} {method:7} {route:24} {status}")
    assert not [one for one in seen if one[2] >= 500]
    assert {(method, route) for method, route, status in seen if status < 300} >= OPERATIONS, "what can be done was not"
    assert len({status for _, _, status in seen if status >= 400}) > 5, "hardly anything was wrong"
