"""compose.yaml, the images and the backup, as far as they can be checked without containers (else docker/verify)."""

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from service.settings import PREFIX, Settings

TOP = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((TOP / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILES = sorted((TOP / "docker").glob("*.Dockerfile"))


def test_every_setting_that_the_service_is_given_is_one():
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    image = (TOP / "docker" / "service.Dockerfile").read_text()
    given = {line.split("=")[0].strip() for line in image.splitlines() if line.strip().startswith(PREFIX)}
    assert given
    assert given | set(SERVICES["service"]["environment"]) <= known


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_confined(name):
    one = SERVICES[name]
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert not one.get("privileged")


def test_only_the_proxy_is_published_and_only_on_loopback():
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["proxy"]["ports"])
    assert [name for name in SERVICES if SERVICES[name]["networks"] != ["inner"]] == ["proxy"]
    assert COMPOSE["networks"]["inner"]["internal"] is True


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_every_image_runs_without_root_and_says_what_it_is(path):
    text = path.read_text()
    users = [line.split()[1] for line in text.splitlines() if line.startswith("USER ")]
    assert users[-1].split(":")[0].isdigit()
    assert users[-1] != "0"
    assert "org.opencontainers.image.title" in text
    assert "chown -R" not in text


def volumes(verb: str, folder: Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"DEBUT_RELEASES": str(folder / "releases"), "LEDGER_FOLDER": str(folder / "ledger")}
    command = [sys.executable, str(TOP / "docker" / "volumes.py"), verb]
    return subprocess.run(command, input=given, capture_output=True, env=environment, check=False)


@pytest.fixture
def full(tmp_path):
    """A folder of releases with a link, and a ledger that somebody has open."""
    folder = tmp_path / "full"
    (folder / "releases" / "one").mkdir(parents=True)
    (folder / "releases" / "one" / "manifest.json").write_text("{}")
    (folder / "releases" / "current").symlink_to("one")
    (folder / "releases" / ".lock").touch()
    (folder / "ledger").mkdir()
    with closing(sqlite3.connect(folder / "ledger" / "ledger.sqlite", isolation_level=None)) as open_ledger:
        open_ledger.execute("PRAGMA journal_mode=WAL")
        open_ledger.execute("CREATE TABLE events (text)")
        open_ledger.execute("INSERT INTO events VALUES ('acknowledged')")  # only in the WAL so far
        yield folder


def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    (folder / "releases").mkdir(parents=True)
    (folder / "ledger").mkdir()
    return folder


def test_what_is_saved_while_the_ledger_is_open_is_loaded_again(full, tmp_path):
    folder = empty(tmp_path)
    saved = volumes("save", full)
    assert (saved.returncode, saved.stderr) == (0, b"")
    loaded = volumes("load", folder, saved.stdout)
    assert (loaded.returncode, loaded.stderr) == (0, b"")
    assert (folder / "releases" / "current" / "manifest.json").read_text() == "{}"
    assert sorted(path.name for path in (folder / "ledger").iterdir()) == ["ledger.sqlite"]
    with closing(sqlite3.connect(folder / "ledger" / "ledger.sqlite")) as ledger:
        assert ledger.execute("SELECT * FROM events").fetchall() == [("acknowledged",)]
    assert ".snapshot.sqlite" not in os.listdir(full / "ledger")


def test_nothing_is_loaded_over_what_is_there(full):
    saved = volumes("save", full).stdout
    refused = volumes("load", full, saved)
    assert refused.returncode == 2
    assert b"load into empty volumes" in refused.stderr


def test_what_is_cut_off_or_something_else_leaves_no_ledger(full, tmp_path):
    folder = empty(tmp_path)
    saved = volumes("save", full).stdout
    at = saved.index(b"ledger.sqlite")
    assert volumes("load", folder, saved[: at + 2000]).returncode == 2
    assert not (folder / "ledger" / "ledger.sqlite").exists()


def test_the_proxys_sections_are_named_once_and_every_backend_that_is_used_is_there():
    lines = [line for line in (TOP / "docker" / "haproxy.cfg").read_text().splitlines() if line.strip()]
    heads = [line for line in lines if not line.startswith((" ", "#"))]
    assert all(re.fullmatch(r"global|defaults|(resolvers|frontend|backend) \w+", head) for head in heads), heads
    assert len(heads) == len(set(heads))
    used = re.findall(r"^ +(?:use|default)_backend (\w+)", "\n".join(lines), re.MULTILINE)
    assert {f"backend {name}" for name in used} == {head for head in heads if head.startswith("backend")}
