"""Folding: the next release holds exactly what the collection held, and nothing of what was taken down."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from index_examples import embedded, unit, vectors_of

from index.audience.cat import Audience
from index.audience.listening import Listening
from index.audience.listening_file import write_audience
from index.collection import PARTS, Collection, CollectionView, write_collection
from index.release.fold import MARKS, Changes, FoldError, fold, read_marks
from index.release.release import Release, ReleaseError, publish
from index.tracks.catalogue import Filters
from index.tracks.track import Track

N, LISTENERS = 30, 20
FACTS = {"dims": {"continuation": 16, "matching": 8}, "counts": {"tracks": N, "playlists": 7}, "data": "abc"}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def released(root: Path, rng: np.random.Generator, *, audience: bool = True) -> Release:
    """A release of N tracks; t0 to t2 lack a vector or a part."""
    tracks = [Track(f"t{i}", title=f"Title {i}", genres=("a",) * (i % 2), attributes={"i": float(i)}) for i in range(N)]
    vectors = vectors_of(rng, N)
    matching = unit(rng, N, 8)
    vectors["audio"][0], vectors["sketch"][0], vectors["continuation"][1], matching[2] = (np.nan,) * 4
    heard = rng.random((LISTENERS, N)) < 0.3
    heard[:, ::5] = False  # cold
    listener, row = np.nonzero(heard)

    def fill(folder: Path) -> None:
        for name in ("encoder", "matcher"):
            (folder / name).mkdir()
            (folder / name / "model.onnx").write_bytes(name.encode())
        write_collection(folder, tracks, heard.sum(0), vectors, matching)
        if audience:
            plays = rng.integers(1, 9, len(row)).astype(np.float32)
            ids = [f"l{i}" for i in range(LISTENERS)]
            write_audience(folder / "audience", ids, listener, row, plays, matching, activity=0.25)

    return publish(root, fill, facts=FACTS)


def change(collection: Collection, rng: np.random.Generator, count: int = 60) -> dict[str, int]:
    """Add, replace and remove at random; return marks of the tracks that were added."""
    marks = {}
    for number in range(count):
        track_id = f"t{rng.integers(N + 15)}"
        if rng.random() < 0.4:
            collection.remove(track_id)
        else:
            vectors = embedded(rng)
            if rng.random() < 0.2:
                vectors = dataclasses.replace(vectors, text=None, continuation=vectors.audio)
            collection.add(Track(track_id, title=f"New {number}", attributes={"n": ["x"]}), vectors, unit(rng, 8))
            marks[track_id] = number + 1
    return marks


def by_id(view: CollectionView) -> dict[str, tuple]:
    """Everything that a view says of its tracks, without rows."""
    rows = np.flatnonzero(view.catalogue.mask(Filters()))
    spaces = ("continuation", "matching", *PARTS)
    arrays = [view.space(name).vectors(rows) for name in spaces]
    return {
        (track := view.catalogue.track(row)).track_id: (
            track,
            int(view.catalogue.interactions[row]),
            *(array[place].tobytes() for array in arrays),
        )
        for place, row in enumerate(rows.tolist())
    }


def plays_of(release: Release, view: CollectionView) -> dict[tuple[str, str], float]:
    """(listener, track) -> plays, for the tracks of a release that are still in a view of it."""
    listening = Listening.open(release.path / "audience")
    live = {int(view.catalogue.origins[row]): row for row in np.flatnonzero(view.catalogue.live)}
    return {
        (listening.ids[u], view.catalogue.track(live[row]).track_id): float(plays)
        for u in range(len(listening))
        for row, plays in zip(
            listening.rows[listening.offsets[u] : listening.offsets[u + 1]].tolist(),
            listening.plays[listening.offsets[u] : listening.offsets[u + 1]],
            strict=True,
        )
        if row in live
    }


def test_the_next_release_holds_what_the_collection_held_and_nothing_else(tmp_path, rng):
    first = released(tmp_path, rng)
    collection = Collection.open(first)
    marks = change(collection, rng)
    view = collection.view()
    folded = fold(tmp_path, first, view, marks)

    assert Release.open(tmp_path).id == folded.id
    assert Release.open(first.path).id == first.id
    again = Collection.open(folded).view()
    assert by_id(again) == by_id(view)
    assert plays_of(folded, again) == plays_of(first, view)
    ids = [again.catalogue.track(row).track_id for row in range(len(again))]
    old = [track_id for track_id in ids if int(track_id[1:]) < N and track_id not in marks]
    assert ids[: len(old)] == sorted(old, key=lambda track_id: int(track_id[1:]))  # the release's own come first
    fresh = {track.track_id for track in view.catalogue.fresh}
    expected = [marks[i] if i in fresh and view.catalogue.row_of(i) >= N else 0 for i in ids]
    np.testing.assert_array_equal(read_marks(folded), np.array(expected, np.uint64))
    for name in ("encoder", "matcher"):
        assert os.path.samefile(first.path / name / "model.onnx", folded.path / name / "model.onnx")


def test_listeners_are_what_is_left_of_what_they_heard(tmp_path, rng):
    """rep(u) = l2(sum log1p(plays) z), in float64 from the pairs and vectors of the folded release alone."""
    first = released(tmp_path, rng)
    collection = Collection.open(first)
    change(collection, rng)
    folded = fold(tmp_path, first, collection.view(), {})
    view = Collection.open(folded).view()
    listening = Listening.open(folded.path / "audience")
    plays = plays_of(folded, view)
    assert listening.power == Listening.open(first.path / "audience").power == 0.25
    for u in range(LISTENERS):
        total = np.zeros(8)
        for (listener, track_id), count in plays.items():
            if listener == listening.ids[u]:
                vector = view.matching.vectors([view.catalogue.row_of(track_id)])[0]
                total += np.log1p(count) * np.nan_to_num(vector.astype(np.float64))
        norm = np.linalg.norm(total)
        np.testing.assert_allclose(listening.points(np.array([u]))[0], total / norm if norm > 1e-6 else 0, atol=2e-3)


def test_answers_stay_as_they_were(tmp_path, rng):
    """Playlists after any changes; audiences, whose listeners a removal changes, after additions."""
    first = released(tmp_path, rng)
    collection = Collection.open(first)
    for number in range(10):
        collection.add(Track(f"new{number}"), embedded(rng), unit(rng, 8))
    before = collection.view()
    second = fold(tmp_path, first, before, {})
    after = Collection.open(second).view()
    query = unit(rng, 8)
    one, other = (
        Audience.open(release).target(query, view, row=None, clusters=3, limit=10)
        for release, view in ((first, before), (second, after))
    )
    assert [t.listener_id for t in one.listeners] == [t.listener_id for t in other.listeners]
    np.testing.assert_allclose([t.score for t in one.listeners], [t.score for t in other.listeners], atol=1e-6)
    assert [n.track_id for n in one.neighbours] == [n.track_id for n in other.neighbours]

    collection = Collection.open(second)
    change(collection, rng)
    before = collection.view()
    after = Collection.open(fold(tmp_path, second, before, {})).view()
    for query in unit(rng, 5, 16):
        found = []
        for view in (before, after):
            scores, rows = view.continuation.search(query, 20)
            found.append(
                [(view.catalogue.track(r).track_id, s) for r, s in zip(rows[0], scores[0], strict=True) if r >= 0]
            )
        assert found[0] == found[1]


def test_marks_and_facts_go_from_fold_to_fold(tmp_path, rng):
    first = released(tmp_path, rng)
    assert len(read_marks(first)) == 0
    collection = Collection.open(first)
    for name in ("a", "b", "c", "t9"):
        collection.add(Track(name), embedded(rng), unit(rng, 8))
    collection.remove("t8")
    second = fold(tmp_path, first, collection.view(), {"a": 2**64 - 1, "b": 2, "c": 3, "t9": 9})
    collection = Collection.open(second)
    collection.add(Track("b"), embedded(rng), unit(rng, 8))
    collection.remove("c")
    collection.remove("t7")
    third = fold(tmp_path, second, collection.view(), {"b": 20})
    view = Collection.open(third).view()
    marks = read_marks(third)
    assert {view.catalogue.track(row).track_id: int(marks[row]) for row in np.flatnonzero(marks)} == {
        "a": 2**64 - 1,
        "t9": 9,
        "b": 20,
    }
    facts = third.manifest.facts
    assert facts["folded"] == {"from": second.id, "trained": first.id, "added": 0, "replaced": 1, "removed": 2}
    assert second.manifest.facts["folded"] == {
        "from": first.id, "trained": first.id, "added": 3, "replaced": 1, "removed": 1,
    }  # fmt: skip
    assert {name: facts[name] for name in ("dims", "data")} == {name: FACTS[name] for name in ("dims", "data")}
    cold = int((view.catalogue.interactions == 0).sum())
    assert third.manifest.counts == {"tracks": N, "cold_tracks": cold, "listeners": LISTENERS, "playlists": 7}


def test_changes_are_counted(tmp_path, rng):
    collection = Collection.open(released(tmp_path, rng))
    assert not Changes.of(collection.view())
    collection.add(Track("new"), embedded(rng), unit(rng, 8))
    collection.add(Track("t1"), embedded(rng), unit(rng, 8))
    collection.remove("t2")
    collection.add(Track("gone"), embedded(rng), unit(rng, 8))
    collection.remove("gone")
    assert Changes.of(collection.view()) == Changes(added=1, replaced=1, removed=1)
    collection.add(Track("t2"), embedded(rng), unit(rng, 8))
    assert Changes.of(collection.view()) == Changes(added=1, replaced=2, removed=0)


def test_a_release_without_listening_stays_without(tmp_path, rng):
    first = released(tmp_path, rng, audience=False)
    collection = Collection.open(first)
    collection.remove("t1")
    folded = fold(tmp_path, first, collection.view(), {})
    assert not (folded.path / "audience").exists()
    assert folded.manifest.counts["listeners"] == 0


def test_what_cannot_be_folded_is_refused_and_leaves_no_trace(tmp_path, rng):
    first = released(tmp_path, rng)
    collection = Collection.open(first)
    collection.remove("t1")
    view = collection.view()
    for number in range(N):
        collection.remove(f"t{number}")
    with pytest.raises(FoldError, match="every track") as refused:
        fold(tmp_path, first, collection.view(), {})
    assert refused.value.code == "fold_empty"
    second = released(tmp_path, rng)
    with pytest.raises(FoldError, match="cannot be folded into"):
        fold(tmp_path, second, view, {})
    with pytest.raises(ReleaseError, match=f"{second.id} is: do it again") as refused:
        fold(tmp_path, first, view, {})
    assert refused.value.code == "release_moved"
    assert Release.open(tmp_path).id == second.id
    assert {path.name for path in tmp_path.glob("[!.]*")} == {first.id, second.id, "current"}


@pytest.mark.parametrize("content", [b"nonsense", np.zeros(3, np.int32), np.zeros((2, 2), np.uint64), np.array([{}])])
def test_damaged_marks_are_a_sentence(tmp_path, content):
    def fill(folder: Path) -> None:
        with (folder / MARKS).open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content)

    with pytest.raises(FoldError, match="publish again") as refused:
        read_marks(publish(tmp_path, fill, facts={}))
    assert refused.value.code == "marks_damaged"
