"""The content half of a matching vector against its definition in NumPy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from test_bcl_export import SPECS, tracks, vectors

from index.models.fields import FieldSet
from index.tracks.track import Track
from training.bcl.config import CONTENT_SHARE, BclConfig
from training.bcl.content import Content, _right_singular
from training.bcl.model import Bcl
from training.bcl.share import choose_share
from training.data.splits import TEST, TRAIN, VALID

DIMS, LEARNT = 12, np.arange(150)
WORDS = ("categorical", "multi")


def read(fields: FieldSet, some: list[Track], rows: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in fields.transform(some, rows).items()}


def fitted(kinds: tuple[str, ...], n: int = 200, dims: int = DIMS) -> tuple[FieldSet, Content, np.ndarray]:
    fields = FieldSet.fit([spec for kind in kinds for spec in SPECS[kind]], tracks(n), vectors(n))
    content, inputs = Content(fields, dims), read(fields, tracks(n), vectors(n))
    content.fit(inputs, LEARNT[n > LEARNT], seed=0)
    return fields, content, content(inputs).numpy()


def stated(kinds: tuple[str, ...], n: int = 200) -> np.ndarray:
    """x of the module's first lines, dense."""
    parts = []
    if set(WORDS) & set(kinds):
        tokens = [
            [f"artist={t.artist}"] * bool(t.artist and "categorical" in kinds)
            + [f"language={t.language}"] * bool(t.language and "categorical" in kinds)
            + [f"genre={g}" for g in frequent(t, n)] * ("multi" in kinds)
            for t in tracks(n)
        ]
        words = TfidfVectorizer(analyzer=lambda found: found, binary=True).fit([tokens[i] for i in LEARNT])
        parts.append(words.transform(tokens).toarray())
    if "dense" in kinds:
        for rows in vectors(n).values():
            there = np.nan_to_num(rows.astype(np.float64))
            parts.append(there / np.maximum(np.linalg.norm(there, axis=1, keepdims=True), 1e-12))
    return np.hstack(parts)


def frequent(track: Track, n: int) -> list[str]:
    """A field of eight slots reads the eight most frequent of a track's values."""
    fields = FieldSet.fit(SPECS["multi"], tracks(n), vectors(n))
    return [g for g in fields.vocabularies["genres"] if g in track.genres][:8]


@pytest.mark.parametrize("kinds", [("multi",), ("categorical", "multi"), ("dense",), ("categorical", "multi", "dense")])
def test_it_is_the_analysis_it_says_it_is(kinds: tuple[str, ...]) -> None:
    _, _, found = fitted(kinds)
    x = stated(kinds)
    right = np.linalg.svd(x[LEARNT], full_matrices=False)[2][:DIMS]
    c = x @ right.T
    length = np.linalg.norm(c, axis=1)
    known = length > 1e-2
    expected = c[known] / length[known, None]
    assert found[known] @ found[known].T == pytest.approx(expected @ expected.T, abs=1e-3)  # V but for its signs
    assert np.linalg.norm(found[known], axis=1) == pytest.approx(np.ones(known.sum()), abs=1e-5)


def test_a_track_of_which_nothing_is_known_has_none() -> None:
    fields, content, _ = fitted(("categorical", "multi", "dense"))
    nothing = {name: np.full((1, 64), np.nan, np.float32) for name in ("audio", "text")}
    assert not content(read(fields, [Track("new", artist="never heard of")], nothing)).any()


def test_a_new_value_does_not_move_a_track() -> None:
    fields, content, _ = fitted(("categorical", "multi"))
    known = content(read(fields, [Track("a", genres=("g1", "g2"))], {}))
    more = content(read(fields, [Track("b", artist="never heard of", genres=("g2", "unheard", "g1"))], {}))
    assert torch.allclose(known, more, atol=1e-6)


def test_the_cosine_of_a_release_is_the_weighted_mean_of_both() -> None:
    fields = FieldSet.fit([*SPECS["multi"], *SPECS["dense"]], tracks(60), vectors(60))
    model = Bcl(fields, BclConfig(fields=fields.specs, hidden=(16,), content_dims=DIMS, content_share=0.3)).eval()
    inputs = read(fields, tracks(60), vectors(60))
    model.content.fit(inputs, np.arange(60), seed=0)
    with torch.no_grad():
        both, z, c = model.matching(inputs), model(inputs), model.content(inputs)
    told = c.norm(dim=1) > 0
    expected = 0.7 * z[told] @ z[told].T + 0.3 * c[told] @ c[told].T
    assert torch.allclose(both[told] @ both[told].T, expected, atol=1e-5)
    assert told.sum() > 50
    assert torch.allclose(both[~told][:, :128], z[~told], atol=1e-6)


@pytest.mark.parametrize(("kinds", "dims"), [(("numeric", "multi"), 0), (("numeric",), 8)])
def test_without_content_there_is_z(kinds: tuple[str, ...], dims: int) -> None:
    specs = [spec for kind in kinds for spec in SPECS[kind]]
    fields = FieldSet.fit(specs, tracks(20), vectors(20))
    model = Bcl(fields, BclConfig(fields=tuple(specs), hidden=(16,), content_dims=dims)).eval()
    inputs = read(fields, tracks(20), vectors(20))
    model.content.fit(inputs, np.arange(20), seed=0)
    with torch.no_grad():
        found = model.matching(inputs)
        assert found.shape == (20, 128 + dims)
        assert torch.allclose(found[:, :128], model(inputs), atol=1e-6)


def test_it_is_the_same_each_time_and_learnt_from_the_rows_it_is_given() -> None:
    kinds = ("categorical", "multi", "dense")
    _, first, _ = fitted(kinds)
    _, again, _ = fitted(kinds)
    assert all(torch.equal(one, two) for one, two in zip(first.buffers(), again.buffers(), strict=True))
    fields = FieldSet.fit([spec for kind in kinds for spec in SPECS[kind]], tracks(200), vectors(200))
    inputs = read(fields, tracks(200), vectors(200))
    changed = {name: array.clone() for name, array in inputs.items()}
    for array in changed.values():
        array[len(LEARNT) :] = 0
    other = Content(fields, DIMS)
    other.fit(changed, LEARNT, seed=0)
    assert all(torch.equal(one, two) for one, two in zip(first.buffers(), other.buffers(), strict=True))


@dataclass
class Heard:
    """Listens that follow the vectors of one of two spaces."""

    listener_ids: list[str]
    listener: np.ndarray
    row: np.ndarray


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("by", ["trained", "content"])
def test_the_share_is_what_the_validation_listeners_follow(by: str) -> None:
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    spaces = {name: unit(rng.standard_normal((300, 8))) for name in ("trained", "content")}
    taste = unit(rng.standard_normal((200, 8)))
    listener, row = np.nonzero(taste @ spaces[by].T > 0.4)
    split = np.repeat(np.array([TRAIN, VALID, TEST], np.int8), 100)
    heard = Heard([str(u) for u in range(200)], listener, row)
    share, area = choose_share(spaces["trained"], spaces["content"], heard, split)
    assert share == {"trained": 0.0, "content": 0.75}[by]
    assert area > 0.8
    shuffled = Heard(heard.listener_ids, *np.nonzero(taste @ spaces["trained"].T > 0.4))
    test = split[heard.row] == TEST
    mixed = Heard(
        heard.listener_ids,
        np.concatenate([listener[~test], shuffled.listener[split[shuffled.row] == TEST]]),
        np.concatenate([row[~test], shuffled.row[split[shuffled.row] == TEST]]),
    )
    assert choose_share(spaces["trained"], spaces["content"], mixed, split) == (share, area)  # test is not looked at


def test_where_nobody_heard_a_validation_track_there_is_a_default() -> None:
    rows = unit(np.random.default_rng(0).standard_normal((10, 4)))
    split = np.array([TRAIN] * 5 + [VALID] * 5, np.int8)
    nobody = Heard(["u", "v"], np.array([0, 1]), np.array([0, 1]))
    assert choose_share(rows, rows, nobody, split) == (CONTENT_SHARE, None)
    assert choose_share(rows, rows, None, split) == (CONTENT_SHARE, None)
    assert choose_share(rows, np.zeros_like(rows), nobody, split) == (0.0, None)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_fields_that_tell_no_tracks_apart_are_no_failure(value):
    matrix = np.zeros((50, 30))
    matrix[:, 3] = value
    right = _right_singular(sparse.csr_array(matrix), 8, 0)
    np.testing.assert_allclose(np.abs(right[:, 0] if value else right[3]), np.eye(30)[3] if value else 0, atol=1e-9)
    assert np.isfinite(right).all()
