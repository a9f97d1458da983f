"""The collection: one state of catalogue, spaces and parts, whoever writes meanwhile."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
from index_examples import Folder, embedded, unit, vectors_of, write_folder

from index.collection import PARTS, Collection, CollectionError, CollectionView, write_collection
from index.growing import GrowingArray
from index.search.exact import ExactView
from index.search.parts import LiveSegment
from index.search.segmented import SegmentedView
from index.search.segments import SegmentError
from index.tracks import catalogue
from index.tracks.catalogue import Filters
from index.tracks.catalogue_file import CatalogueError
from index.tracks.track import Track

N = 30


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def tracks(n: int = N) -> list[Track]:
    return [Track(f"t{i}", title=f"Title {i}", artist=f"Artist {i % 4}") for i in range(n)]


@pytest.fixture
def folder(tmp_path, rng) -> Folder:
    return write_folder(tmp_path, tracks(), [i % 3 for i in range(N)], rng)


def everything(space) -> set[int]:
    rows = space.search(np.ones(space.dims, np.float32), 10_000)[1][0]
    return set(rows[rows >= 0].tolist())


def check(view: CollectionView) -> None:
    """A row is everywhere or nowhere."""
    live = set(np.flatnonzero(view.catalogue.mask(Filters())).tolist())
    assert everything(view.continuation) == everything(view.matching) == live
    assert len(view) == len(view.continuation) == len(view.matching) == len(live)
    rows = np.arange(view.catalogue.size + 3)
    audio, text = view.parts(rows)
    sketches = view.space("sketch").vectors(rows)
    for part in (audio, text, sketches, view.continuation.vectors(rows), view.matching.vectors(rows)):
        assert set(np.flatnonzero(~np.isnan(part).any(axis=1)).tolist()) == live
    for row in live:
        assert view.catalogue.row_of(view.catalogue.track(row).track_id) == row


def test_opens_what_was_written(tmp_path, rng):
    vectors = vectors_of(rng, N)
    for name, missing in (("audio", [3, 4]), ("text", [4, 5]), ("sketch", [3, 6]), ("continuation", [4])):
        vectors[name][missing] = np.nan
    matching = unit(rng, N, 8)
    folder = write_folder(tmp_path, tracks(), [0] * N, rng, matching=matching, vectors=vectors)
    collection = Collection.open(folder)
    assert collection.release_id == folder.id
    assert len(collection) == N
    rows = np.arange(N)
    np.testing.assert_array_equal(collection.continuation.vectors(rows), vectors["continuation"])
    np.testing.assert_array_equal(collection.matching.vectors(rows), matching)
    audio, text = collection.parts(rows)
    np.testing.assert_array_equal(audio, vectors["audio"])
    np.testing.assert_array_equal(text, vectors["text"])
    np.testing.assert_array_equal(collection.view().space("sketch").vectors(rows), vectors["sketch"])
    assert len(collection.continuation) == N - 1
    assert 4 not in everything(collection.continuation)
    assert [collection.catalogue.track(row) for row in range(N)] == tracks()
    assert {p.name for p in tmp_path.rglob("*")} == {
        *("tracks.parquet", "continuation.faiss", "matching.faiss", "vectors", "audio.npy", "text.npy", "sketch.npy")
    }


def test_adding_replacing_and_removing(folder, rng):
    collection = Collection.open(folder)
    before = collection.view()
    new, other = embedded(rng), embedded(rng)
    matching = unit(rng, 2, 8)
    row = collection.add(Track("new"), new, matching[0])
    assert row == N
    check(collection.view())
    assert collection.continuation.search(new.continuation, 1)[1] == row
    assert collection.matching.search(matching[0], 1)[1] == row
    again = collection.add(Track("new", title="Again"), other, matching[1])
    assert again == N + 1
    check(collection.view())
    assert collection.continuation.search(new.continuation, 1)[1] != row
    assert collection.catalogue.track(again).title == "Again"
    np.testing.assert_array_equal(collection.parts([again])[0][0], other.audio)
    np.testing.assert_array_equal(collection.view().sketch.vectors(np.array([row, again])), [new.sketch, other.sketch])
    assert collection.remove("new")
    assert not collection.remove("new")
    assert collection.remove("t7")
    check(collection.view())
    assert np.isnan(collection.parts([7, again])[1]).all()
    check(before)
    assert (len(before), len(collection)) == (N, N - 1)


def test_a_track_may_lack_a_part(folder, rng):
    collection = Collection.open(folder)
    heard = embedded(rng)
    row = collection.add(Track("silent"), replace(heard, audio=None, sketch=None), unit(rng, 8))
    audio, text = collection.parts([row])
    assert np.isnan(audio).all()
    assert np.isnan(collection.view().sketch.vectors(np.array([row]))).all()
    np.testing.assert_array_equal(text[0], heard.text)


def test_a_replaced_track_keeps_its_listening(folder, rng):
    collection = Collection.open(folder)
    rows = [collection.add(Track(name), embedded(rng), unit(rng, 8)) for name in ("t5", "t5", "new")]
    assert [collection.catalogue.is_cold(row) for row in rows] == [False, False, True]
    assert collection.catalogue.origins[rows].tolist() == [5, 5, -1]
    warm = collection.add(Track("t5"), embedded(rng), unit(rng, 8), interactions=0)
    assert collection.catalogue.is_cold(warm)


def test_what_cannot_be_added_changes_nothing(folder, rng):
    collection = Collection.open(folder)
    good, matching = embedded(rng), unit(rng, 8)
    bad = [
        (Track(""), good, matching),
        (Track("x"), good, matching * 2),
        (Track("x"), good, matching[:7]),
        (Track("x"), good, np.full(8, np.nan)),
        (Track("x"), good, np.stack([matching, matching])),
        (Track("x"), replace(good, continuation=np.full(16, np.nan)), matching),
        (Track("x"), replace(good, audio=np.zeros(16)), matching),
        (Track("x"), replace(good, text=unit(rng, 17)), matching),
        (Track("t1"), replace(good, text=unit(rng, 17)), matching),
    ]
    for track, vectors, match in bad:
        with pytest.raises(ValueError, match=r"vectors|track_id"):
            collection.add(track, vectors, match)
        check(collection.view())
    assert collection.catalogue.size == N
    assert collection.add(Track("x"), good, matching) == N


def test_every_view_is_whole_while_others_write(folder, rng):
    """Two writers add, replace and remove; readers must never meet a track in one part and not in another."""
    collection = Collection.open(folder)
    made = [(embedded(rng), unit(rng, 8)) for _ in range(40)]
    stop = threading.Event()
    failures: list[BaseException] = []
    sizes: set[int] = set()

    def read() -> None:
        while not stop.is_set():
            try:
                view = collection.view()
                check(view)
                sizes.add(view.catalogue.size)
            except BaseException as error:
                failures.append(error)
                return

    def write(name: str) -> None:
        for turn, (vectors, matching) in enumerate(itertools.chain(made, made)):
            collection.add(Track(f"{name}{turn % 5}"), vectors, matching)
            collection.add(Track("both"), vectors, matching)
            if turn % 3 == 0:
                collection.remove(f"{name}{turn % 5}")
                collection.remove(f"t{turn // 3}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in readers + writers:
        thread.start()
    for writer in writers:
        writer.join(timeout=60)
    stop.set()
    for reader in readers:
        reader.join(timeout=60)
    assert not failures, failures[0]
    assert len(sizes) > 3, "the readers never met the writers"
    check(collection.view())
    assert collection.catalogue.size == N + 2 * 2 * 80


@pytest.mark.parametrize("name", ["continuation.faiss", "matching.faiss", *(f"vectors/{part}.npy" for part in PARTS)])
def test_files_of_another_collection_are_refused(tmp_path, rng, name):
    for directory in "ab":
        (tmp_path / directory).mkdir()
    first = write_folder(tmp_path / "a", tracks(), [0] * N, rng)
    other = write_folder(tmp_path / "b", tracks(N - 1), [0] * (N - 1), rng)
    other.file(name).replace(first.file(name))
    with pytest.raises(CollectionError, match=f"files differ in their number of tracks.*'{name}': {N - 1}") as caught:
        Collection.open(first)
    assert caught.value.code == "collection_mismatch"


def test_damaged_files_are_refused(folder):
    path = folder.file("vectors/text.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CollectionError, match=r"text\.npy cannot be read"):
        Collection.open(folder)
    np.save(path, np.array([{"a": 1}] * N), allow_pickle=True)
    with pytest.raises(CollectionError, match=r"text\.npy cannot be read"):
        Collection.open(folder)
    np.save(path, np.zeros((N, 16)))
    with pytest.raises(CollectionError, match=r"holds float64 \[30, 16\], not float32"):
        Collection.open(folder)
    path.write_bytes(whole)
    folder.file("matching.faiss").write_bytes(b"junk")
    with pytest.raises(SegmentError):
        Collection.open(folder)
    folder.file("tracks.parquet").unlink()
    with pytest.raises(CatalogueError):
        Collection.open(folder)


def test_does_not_write_arrays_of_other_lengths(tmp_path, rng):
    vectors = vectors_of(rng, N)
    with pytest.raises(ValueError, match=r"matching must be of shape \[30, d\], not \[29, 8\]"):
        write_collection(tmp_path, tracks(), np.zeros(N, np.int32), vectors, unit(rng, N - 1, 8))
    for broken in (2 * vectors["text"], np.where(np.arange(16) == 3, np.nan, vectors["text"])):
        with pytest.raises(ValueError, match="text: vectors must"):
            write_collection(tmp_path, tracks(), np.zeros(N, np.int32), vectors | {"text": broken}, unit(rng, N, 8))
    with pytest.raises(ValueError, match="text and sketch and continuation is missing"):
        write_collection(tmp_path, tracks(), np.zeros(N, np.int32), {"audio": vectors["audio"]}, unit(rng, N, 8))
    assert not list(tmp_path.iterdir())


class Allocations:
    """Counts what may need memory, and fails at the given one (and at all after it, with `for_good`)."""

    def __init__(self, monkeypatch) -> None:
        self.seen, self.fail_at, self.for_good = 0, 0, False
        self._watch(monkeypatch, GrowingArray, "append")
        self._watch(monkeypatch, LiveSegment, "without")
        self._watch(monkeypatch, ExactView, "without")
        self._watch(monkeypatch, ExactView, "__init__")
        self._watch(monkeypatch, SegmentedView, "__init__")
        self._watch(monkeypatch, CollectionView, "__init__")
        self._watch(monkeypatch, catalogue, "_without")

    def _watch(self, monkeypatch, where, name) -> None:
        real = getattr(where, name)

        def counted(*given, **named):
            self.seen += 1
            if self.seen == self.fail_at or (self.for_good and 0 < self.fail_at <= self.seen):
                raise MemoryError
            return real(*given, **named)

        monkeypatch.setattr(where, name, counted)

    def expect(self, fail_at: int, *, for_good: bool = False) -> None:
        self.seen, self.fail_at, self.for_good = 0, fail_at, for_good


def state(view: CollectionView) -> tuple:
    """All that can be asked of a view."""
    check(view)
    rows = np.arange(view.catalogue.size)
    found = [view.catalogue.track(row) for row in np.flatnonzero(view.catalogue.live)]
    spaces = [space.vectors(rows).tobytes() for space in (view.continuation, view.matching)]
    masks = [
        view.catalogue.mask(Filters(genres=("folk",))).tolist(),
        view.catalogue.mask(Filters(languages=("en",))).tolist(),
    ]
    return (
        found,
        spaces,
        [view.space(name).vectors(rows).tobytes() for name in PARTS],
        masks,
        view.catalogue.search("title", 200),
    )


def added(collection: Collection, track: Track, rng) -> None:
    """Add a track, and find the very vectors that were given."""
    vectors, matching = embedded(rng), unit(rng, 8)
    row = collection.add(track, vectors, matching)
    found = *collection.parts([row]), collection.continuation.vectors([row]), collection.matching.vectors([row])
    for one, given in zip(found, (vectors.audio, vectors.text, vectors.continuation, matching), strict=True):
        np.testing.assert_array_equal(one[0], given)


@pytest.mark.parametrize("for_good", [False, True])
def test_without_memory_an_add_or_remove_changes_nothing(folder, rng, monkeypatch, for_good):
    """Every allocation fails once, for a new track, one that replaces, and one that is removed."""
    collection = Collection.open(folder)
    allocations = Allocations(monkeypatch)
    new, known, fresh = (Track(name, title="Title", language="en", genres=("folk",)) for name in ("new", "t3", "fresh"))
    collection.add(fresh, embedded(rng), unit(rng, 8))
    changes = {
        "new": lambda: added(collection, new, rng),
        "replaces the release's": lambda: added(collection, known, rng),
        "replaces a fresh one": lambda: added(collection, fresh, rng),
        "removes the release's": lambda: collection.remove("t5"),
        "removes a fresh one": lambda: collection.remove("fresh"),
    }
    for name, change in changes.items():
        for number in itertools.count(1):
            before = state(view := collection.view())
            allocations.expect(number, for_good=for_good)
            try:
                change()
            except MemoryError:
                allocations.expect(0)
                assert collection.view() is view, (name, number)
                assert state(view) == before, (name, number)
                if number % 2:  # another track comes, or goes, before the next try
                    added(collection, Track(f"other {name} {number}", title="Title", genres=("folk",)), rng)
                else:
                    assert collection.remove(f"other {name} {number - 1}")
                check(collection.view())
            else:
                allocations.expect(0)
                break
        assert number > 4, name
        check(collection.view())
        assert state(collection.view()) != before, name
    assert {"new", "t3"} <= {track.track_id for track in state(collection.view())[0]}
