"""The simulated listeners: the same seed gives the same people, and their tastes are in what they heard."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.simulate import ARCHETYPES, FEWEST, MOST, Songs, audible, simulate, songs, write_listens

LANGUAGE = ("de", "en", "fr", "it", None)


def table(n: int = 240, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Made-up tracks with what the taste model reads, and their audible properties."""
    rng = np.random.default_rng(seed)
    composer = rng.integers(0, n // 5, n)
    born = 1700 + 4 * composer.astype(float)
    columns = {
        "track_id": [f"t{i:04d}" for i in rng.permutation(n)],
        "artist": [f"composer {c}" if c else None for c in composer],
        "lyricist": [f"poet {p}" if p > 3 else None for p in rng.integers(0, 60, n)],
        "language": [LANGUAGE[i] for i in rng.choice(5, n, p=[0.4, 0.3, 0.2, 0.05, 0.05])],
        "composer_born": [int(b) if c else None for b, c in zip(born, composer, strict=True)],
    }
    return pa.table(columns), rng.standard_normal((n, 4))


@pytest.fixture(scope="module")
def tracks() -> Songs:
    return songs(*table())


def test_the_same_seed_gives_the_same_listens_and_another_seed_others(tracks):
    first, second, other = simulate(tracks, 100, 1), simulate(tracks, 100, 1), simulate(tracks, 100, 2)
    for name in ("listener", "track", "plays", "liked"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.track, other.track)


def test_the_order_of_the_file_changes_nothing(tracks, tmp_path):
    plain, measured = table()
    order = np.random.default_rng(5).permutation(len(plain))
    write_listens(tmp_path / "a.parquet", tracks, simulate(tracks, 50, 1))
    shuffled = songs(plain.take(order), measured[order])
    write_listens(tmp_path / "b.parquet", shuffled, simulate(shuffled, 50, 1))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_nobody_and_nothing_is_degenerate(tracks):
    listens = simulate(tracks)
    heard = np.bincount(listens.track, minlength=240)
    assert heard.min() >= 3
    assert heard.max() < 0.6 * 600
    assert heard.max() > 4 * np.median(heard)  # a heavy tail
    size = np.bincount(listens.listener)
    assert size.min() >= FEWEST
    assert size.max() <= MOST
    assert len(size) == 600
    assert len(np.unique(np.stack([listens.listener, listens.track]), axis=1).T) == len(listens.track)
    assert listens.plays.min() == 1
    assert np.median(listens.plays) <= 3 < 15 < listens.plays.max()
    assert 0.15 < listens.liked.mean() < 0.6
    assert listens.plays[listens.liked].mean() > listens.plays[~listens.liked].mean()


def share_of(column: int, listens, tracks: Songs) -> np.ndarray:
    """Mean of a feature over what each listener heard, [listeners]."""
    value = tracks.features[listens.track, column]
    return np.bincount(listens.listener, value) / np.bincount(listens.listener)


@pytest.mark.parametrize(
    ("archetype", "column", "more"),
    [
        ("german romantics, calm", 0, True),
        ("english song, after 1850", 1, True),
        ("french salons, bright", 2, True),
        ("the early ones, any tongue", 4, False),
        ("low and dark", 5, False),
        ("dense and dramatic", 7, True),
    ],
)
def test_tastes_can_be_read_off_the_listens(tracks, archetype, column, more):
    listens = simulate(tracks)
    mine = listens.taste[:, list(ARCHETYPES).index(archetype)] > 0.7
    values = share_of(column, listens, tracks)
    gap = (values[mine].mean() - values[~mine].mean()) * (1 if more else -1)
    error = np.sqrt(values[mine].var() / mine.sum() + values[~mine].var() / (~mine).sum())
    assert gap > 5 * error


def test_listeners_of_one_taste_share_tracks(tracks):
    listens = simulate(tracks)
    heard = np.zeros((600, 240))
    heard[listens.listener, listens.track] = 1
    heard /= np.linalg.norm(heard, axis=1, keepdims=True)
    kind, sure = listens.taste.argmax(1), listens.taste.max(1) > 0.7
    alike = heard[sure] @ heard[sure].T
    same = (kind[sure][:, None] == kind[sure][None, :]) & ~np.eye(int(sure.sum()), dtype=bool)
    assert alike[same].mean() > 1.5 * alike[kind[sure][:, None] != kind[sure][None, :]].mean()


def test_the_file_is_a_listens_table(tracks, tmp_path):
    listens = simulate(tracks, 20, 3)
    write_listens(tmp_path / "listens.parquet", tracks, listens)
    written = pq.read_table(tmp_path / "listens.parquet")
    assert written.schema.names == ["listener_id", "track_id", "plays", "liked"]
    assert written["listener_id"][0].as_py() == "sim-0001"
    assert set(written["track_id"].to_pylist()) <= set(tracks.ids)
    assert len(written) == len(listens.track)
    assert [p.name for p in tmp_path.iterdir()] == ["listens.parquet"]


def mel(bins: list[int], *, seconds: float = 5, beats: float = 0, swell: float = 0) -> np.ndarray:
    """A log-mel clip with energy in `bins`, struck `beats` times a second, swelling by `swell` dB."""
    frames = int(seconds * 100)
    out = np.full((1, frames, 64), -60.0, np.float32)
    time = np.arange(frames) / 100
    level = swell * np.sin(2 * np.pi * time / seconds)
    if beats:
        level = level - 30 * ((time * beats) % 1)
    out[0][:, bins] = level[:, None]
    return out


def test_audible_properties_follow_the_sound():
    low, high = audible(mel([5, 6])), audible(mel([40, 41]))
    assert high[0] > low[0] + 30
    assert (low[1], high[1]) == (5, 40)
    assert audible(mel([5], beats=4))[2] == pytest.approx(4, abs=0.5)
    assert audible(mel([5], beats=2))[2] == pytest.approx(2, abs=0.5)
    assert low[2] == 0
    assert audible(mel([5], swell=10))[3] == pytest.approx(10 / np.sqrt(2), rel=0.05)
    assert low[3] == pytest.approx(0)


def test_unknown_values_are_neutral():
    plain, measured = table()
    tracks = songs(plain, measured)
    by_id = {name: n for n, name in enumerate(plain["track_id"].to_pylist())}
    for row, name in enumerate(tracks.ids):
        source = plain.slice(by_id[name], 1).to_pylist()[0]
        assert tracks.features[row, :4].sum() == 1
        assert tracks.features[row, 3] == (source["language"] not in ("de", "en", "fr"))
        if source["composer_born"] is None:
            assert tracks.features[row, 4] == 0
            assert tracks.composer[row] == -1
