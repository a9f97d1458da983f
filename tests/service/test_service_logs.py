"""Log lines: JSON, with a request's id, and never with the values of local variables."""

import json
import subprocess
import sys

from service_process import ROOT, environment

PROGRAM = """
import logging, structlog
from service import logs
logs.configure("info")
def fail(lyrics):
    raise ValueError("broken")
log = structlog.get_logger("debut.test")
log.debug("too quiet to be written")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    try:
        fail("words that belong to " + "somebody")
    except ValueError:
        log.exception("request failed")
    logging.getLogger("uvicorn.error").warning("from %s", "uvicorn")
"""


def test_every_line_is_json_with_the_request_id_and_without_local_variables():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    failed, foreign = map(json.loads, ended.stderr.splitlines())
    assert (failed["event"], failed["level"], failed["request_id"]) == ("request failed", "error", "r1")
    [raised] = failed["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "broken")
    assert [frame["name"] for frame in raised["frames"]] == ["<module>", "fail"]
    assert "somebody" not in ended.stderr
    assert (foreign["event"], foreign["level"], foreign["request_id"]) == ("from uvicorn", "warning", "r1")
