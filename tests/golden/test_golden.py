"""Releases of every format that Debut reads, kept as files: opened by today's code, with the answers of their day."""

import json
import random
import shutil
from pathlib import Path

import pytest
from golden_figures import FOLDER, HERE, figures

from index.release.release import FORMAT, MANIFEST, Release, ReleaseError

FORMATS = sorted(HERE.glob("format-*"))
FILES = sorted(path.relative_to(FOLDER / "release") for path in FOLDER.rglob("release/**/*") if path.is_file())


def test_there_is_a_golden_release_of_the_format_that_is_written():
    assert FOLDER in FORMATS, f"format {FORMAT} has no golden release: run `python -m tests.golden` and commit it"


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_todays_code_answers_as_on_the_day_it_was_written(folder):
    assert_like(figures(folder / "release"), json.loads((folder / "figures.json").read_text()))


def assert_like(found: object, recorded: object) -> None:
    """Equal, numbers to 1e-4."""
    if isinstance(recorded, float):
        assert found == pytest.approx(recorded, abs=1e-4)
    elif isinstance(recorded, dict):
        assert isinstance(found, dict)
        assert found.keys() == recorded.keys()
        for name, value in recorded.items():
            assert_like(found[name], value)
    elif isinstance(recorded, list):
        assert isinstance(found, list)
        assert len(found) == len(recorded)
        for one, other in zip(found, recorded, strict=True):
            assert_like(one, other)
    else:
        assert found == recorded


@pytest.mark.parametrize("name", FILES, ids=str)
def test_a_flipped_bit_in_any_file_is_noticed_when_the_release_is_opened(tmp_path, name):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    path = shutil.copytree(FOLDER / "release", tmp_path / "release")
    content = (path / name).read_bytes()
    for place in (0, len(content) - 1, *numbers.sample(range(len(content)), 10)):
        changed = bytearray(content)
        changed[place] ^= 1 << numbers.randrange(8)
        (path / name).write_bytes(changed)
        with pytest.raises(ReleaseError):
            Release.open(path)
    (path / name).write_bytes(content)
    Release.open(path)


def test_a_release_of_a_format_to_come_is_refused_with_a_sentence_that_says_so(tmp_path):
    path = Path(shutil.copytree(FOLDER / "release", tmp_path / "release"))
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"format": FORMAT + 1, "files": "told otherwise"}))
    with pytest.raises(
        ReleaseError, match=f"has release format {FORMAT + 1} and this Debut reads {FORMAT}: upgrade"
    ) as no:
        Release.open(path)
    assert no.value.code == "release_format"
