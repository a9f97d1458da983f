"""python -m index: what an operator reads, and that a damaged release is told from a sound one."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_examples import unit, vectors_of

from index.__main__ import main
from index.audience.cat import write_audience
from index.collection import Collection, write_collection
from index.models.encoder import encoder_id
from index.release.release import Release, current_id, publish
from index.search.exact import ExactIndex
from index.search.segments import SealedSegment, write_sealed
from index.tracks.track import Track

N, LISTENERS = 60, 9
MODELS = Path(__file__).parents[1] / "golden" / "format-2" / "release"
"""Real models of a few KB: exporting some takes longer than all of these tests."""
CONTINUATION, MATCHING = 16, 8
"""Their dims."""


def tracks() -> list[Track]:
    languages = ("en", "de")
    made = [Track(f"t{n}", title=f"Song {n}", artist=f"Artist {n % 4}", language=languages[n % 2]) for n in range(N)]
    made[7] = replace(made[7], title="Der Mai", release_date="1840-05-01", genres=("lied",), explicit=True)
    return made


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder with one whole release, small models and all."""
    rng = np.random.default_rng(20250307)
    vectors = vectors_of(rng, N, CONTINUATION)
    vectors["continuation"][59] = np.nan
    matching = unit(rng, N, MATCHING)
    heard = rng.integers(0, 3, N)

    def fill(folder: Path) -> None:
        for name in ("encoder", "matcher"):
            shutil.copytree(MODELS / name, folder / name)
        write_collection(folder, tracks(), heard, vectors, matching)
        listener, row = rng.integers(0, LISTENERS, 80), rng.integers(0, N, 80)
        ids = [f"u{n}" for n in range(LISTENERS)]
        write_audience(folder / "audience", ids, listener, row, np.ones(80, np.float32), matching)

    facts = {
        "dims": {"continuation": CONTINUATION, "matching": MATCHING},
        "counts": {"tracks": N, "cold_tracks": int((heard == 0).sum()), "listeners": LISTENERS},
        "encoder_id": encoder_id(MODELS / "encoder"),
    }
    root = tmp_path_factory.mktemp("published") / "releases"
    publish(root, fill, facts=facts)
    return root


@pytest.fixture
def root(published, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "releases", symlinks=True))


def run(capsys, *arguments: object) -> tuple[int, list[str], str]:
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err


def test_info_says_what_a_release_holds(published, capsys):
    status, lines, _ = run(capsys, "info", "--releases", published)
    release = Release.open(published)
    assert status == 0
    words = [line.split() for line in lines]
    assert ["release", release.id] in words
    assert ["tracks", str(N)] in words
    assert ["listeners", str(LISTENERS)] in words
    continuation = next(line for line in words if line[:1] == ["continuation"])
    assert continuation[1:4] == [SealedSegment(release.file("continuation.faiss")).kind, str(N - 1), str(CONTINUATION)]
    whole = sum(entry.bytes for entry in release.manifest.files.values())
    count, size, unit_ = next(line for line in words if line[:1] == ["all"])[1:]
    assert int(count) == len(release.manifest.files)
    assert float(size) == pytest.approx(whole / {"KB": 1e3, "MB": 1e6}[unit_], abs=0.051)


def test_a_sound_release_passes_every_check(published, capsys):
    status, lines, _ = run(capsys, "verify", "--releases", published)
    assert status == 0
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].endswith("all is well")
    named = {line.split(":")[0].removeprefix("ok ").strip() for line in lines[:-1]}
    assert named == {*Release.open(published).manifest.files, "encoder", "matcher", "audience"}


@pytest.mark.parametrize("name", ["continuation.faiss", "vectors/text.npy", "encoder/audio.onnx", "tracks.parquet"])
def test_a_flipped_bit_is_found_and_the_file_named(root, capsys, name):
    path = Release.open(root, verify=False).path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, lines, _ = run(capsys, "verify", "--releases", root)
    assert status == 1
    assert any(re.match(rf"BAD  {name}: is damaged: .* bytes, SHA-256", line) for line in lines)
    assert "checks failed" in lines[-1]


def test_an_empty_file_ends_no_check_but_its_own(root, capsys):
    release = Release.open(root, verify=False)
    names = ("audience/activity.npy", "vectors/audio.npy", "tracks.parquet", "matching.faiss", "encoder/tokenizer.json")
    for name in names:
        path = release.file(name)
        content = path.read_bytes()
        path.write_bytes(b"")
        status, lines, _ = run(capsys, "verify", "--releases", root)
        assert status == 1
        assert any(line.startswith(f"BAD  {name}: is damaged") for line in lines), name
        assert "checks failed" in lines[-1]
        path.write_bytes(content)


def test_missing_and_foreign_files_are_named(root, capsys):
    release = Release.open(root, verify=False)
    release.file("vectors/audio.npy").unlink()
    (release.path / "notes.txt").write_text("mine")
    status, lines, _ = run(capsys, "verify", "--releases", root)
    assert status == 1
    assert "BAD  vectors/audio.npy: is missing" in lines
    assert "BAD  notes.txt: is not in the manifest" in lines


def republished(root: Path, change, **facts) -> None:
    """Publish the release with wrong contents and right checksums."""
    old = Release.open(root)

    def fill(folder: Path) -> None:
        shutil.copytree(old.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        change(folder)

    publish(root, fill, facts={**old.manifest.facts, **facts})


def shorter(folder: Path) -> None:
    path = folder / "vectors" / "audio.npy"
    np.save(path, np.load(path)[:-1])


def longer(folder: Path) -> None:
    path = folder / "vectors" / "text.npy"
    np.save(path, 2 * np.load(path))


@pytest.mark.parametrize(
    ("change", "facts", "expected"),
    [
        (shorter, {}, r"BAD  tracks.parquet: release .* differ in their number of tracks: .*'vectors/audio.npy': 59"),
        (longer, {}, r"BAD  vectors/text.npy: among rows 0 to 59: vectors must have norm 1"),
        (None, {"counts": {"tracks": 61}}, r"BAD  tracks.parquet: .* tracks is 60, but counts have 61"),
        (None, {"counts": {"listeners": 8}}, r"BAD  audience: .* listeners is 9, but counts have 8"),
        (None, {"dims": {"matching": 13}}, r"BAD  matching.faiss: .* matching is 8, but dims have 13"),
        (None, {"encoder_id": "0" * 64}, r"BAD  encoder: the encoder is .*, the manifest says 000000000000"),
    ],
)
def test_what_was_published_wrong_is_found_too(root, capsys, change, facts, expected):
    republished(root, change or (lambda folder: None), **facts)
    status, lines, _ = run(capsys, "verify", "--releases", root)
    assert status == 1
    bad = [line for line in lines if line.startswith("BAD")]
    assert len(bad) == 1
    assert re.match(expected, bad[0])


def test_search_prints_what_the_specification_finds(published, capsys):
    asked = ["search", "t3", "--releases", published]
    status, lines, _ = run(capsys, *asked, "-k", 4, "--language", "en", "--space", "matching")
    stored = Collection.open(Release.open(published)).matching.vectors(np.arange(N))
    exact = ExactIndex(MATCHING)
    exact.add(np.arange(N), stored)
    scores, rows = exact.search(stored[3], 4, np.arange(N) % 2 == 0)
    assert status == 0
    assert lines[0].split() == ["score", "heard", "track_id", "title", "artist", "released"]
    found = [line.split() for line in lines[1:-1]]
    assert [(line[0], line[2]) for line in found] == [
        (f"{score:.4f}", f"t{row}") for score, row in zip(scores[0], rows[0], strict=True)
    ]
    wanted = [*asked, "--genre", "Lied", "--from", "1840", "--to", "1840-05", "--explicit"]
    assert [line.split()[2] for line in run(capsys, *wanted)[1][1:-1]] == ["t7"]
    assert not run(capsys, *wanted, "--artist", "nobody")[1][1:-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["search", "mai"], r"'mai' is no track_id of this release: is it t7 \(Der Mai\)\?"),
        (["search", "xyz"], r"'xyz' is no track_id of this release\."),
        (["search", "t59"], r"'t59' has no vector in the continuation space\."),
        (["search", "t1", "-k", "0"], "k must be at least 1, not 0"),
        (["search", "t1", "--from", "soon"], "released_from must be YYYY"),
        (["activate", "yesterday"], "'yesterday' is not a release id"),
    ],
)
def test_a_question_without_an_answer_is_one_sentence(published, capsys, arguments, sentence):
    status, _, said = run(capsys, *arguments, "--releases", published)
    assert status == 1
    assert re.match(rf"debut: {sentence}", said)
    assert said.count("\n") == 1


def test_no_release_is_one_sentence(tmp_path, capsys):
    for verb in ("info", "verify"):
        status, _, said = run(capsys, verb, "--releases", tmp_path)
        assert status == 1
        assert "holds no release" in said


@pytest.mark.parametrize("kind", ["exact", "scan", "hnsw", "ivf"])
def test_sealing_changes_the_kind_and_nothing_else(root, capsys, kind):
    old = Release.open(root)
    before = Collection.open(old)
    status, lines, _ = run(capsys, "seal", kind, "--releases", root, "--threads", 1)
    assert status == 0
    new = Release.open(root)
    assert lines[0].startswith(f"{new.id} is current now")
    assert new.manifest.facts == {**old.manifest.facts, "sealed_from": old.id}
    after = Collection.open(new)
    for space in ("continuation", "matching"):
        assert SealedSegment(new.file(f"{space}.faiss")).kind == kind
        rows = np.arange(N)
        np.testing.assert_array_equal(getattr(after, space).vectors(rows), getattr(before, space).vectors(rows))
    assert os.path.samefile(old.file("tracks.parquet"), new.file("tracks.parquet"))
    assert run(capsys, "verify", "--releases", root)[0] == 0
    shutil.rmtree(new.path)
    assert run(capsys, "activate", old.id, "--releases", root)[0] == 0
    assert Release.open(root).id == old.id


def test_sealing_one_space_leaves_the_other(root, capsys):
    old = Release.open(root)
    run(capsys, "seal", "hnsw", "--releases", root, "--space", "matching", "--threads", 1)
    new = Release.open(root)
    assert os.path.samefile(old.file("continuation.faiss"), new.file("continuation.faiss"))
    assert SealedSegment(new.file("matching.faiss")).kind == "hnsw"


def test_a_release_that_was_published_meanwhile_is_not_superseded(root, capsys, monkeypatch):
    old = Release.open(root)

    def meanwhile(*given, **named):
        if current_id(root) == old.id:
            republished(root, lambda folder: None, sealed_from="elsewhere")
        write_sealed(*given, **named)

    monkeypatch.setattr("index.release.reseal.write_sealed", meanwhile)
    status, _, said = run(capsys, "seal", "scan", "--releases", root, "--threads", 1)
    assert status == 1
    assert re.match(rf"debut: {old.id} is not the current release of .* any more, .* is: do it again on that", said)
    assert Release.open(root, verify=False).manifest.facts["sealed_from"] == "elsewhere"
    status, _, said = run(capsys, "seal", "scan", "--releases", old.path, "--threads", 1)
    assert status == 1
    assert "is not the current release" in said


def test_nothing_is_sealed_from_a_damaged_release(root, capsys):
    release = Release.open(root, verify=False)
    release.file("tracks.parquet").write_bytes(b"")
    status, _, said = run(capsys, "seal", "scan", "--releases", root)
    assert status == 1
    assert "tracks.parquet is damaged" in said
    assert Release.open(root, verify=False).id == release.id


def test_runs_as_a_program(published):
    done = subprocess.run(
        [sys.executable, "-m", "index", "info", "--releases", published],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert not done.stderr
    assert done.stdout.startswith("release ")
