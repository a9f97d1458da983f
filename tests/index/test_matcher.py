"""The exported matcher, held against the torch module it came from."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from index.models.fields import FieldsError
from index.models.matcher import Matcher
from index.models.onnxmodel import ModelError
from index.tracks.track import Track

RANDOM = np.random.default_rng(3)


def example(count: int) -> tuple[list[Track], dict[str, np.ndarray]]:
    """Tracks, some of them unknown or incomplete, and their vectors."""
    tracks = [
        Track(
            str(n), artist=None if n % 5 == 0 else f"Artist {n % 4}", attributes={"born": 1790.0 + n} if n % 3 else {}
        )
        for n in range(count)
    ]
    vectors = RANDOM.standard_normal((count, 64)).astype(np.float32)
    vectors[::4] = np.nan
    return tracks, {"audio": vectors, "text": vectors}


@pytest.fixture(scope="module")
def matcher(small_matcher) -> Matcher:
    return Matcher.open(small_matcher.directory, threads=1)


def test_vectors_are_what_torch_computes(small_matcher, matcher):
    tracks, vectors = example(37)
    inputs = small_matcher.extra.transform(tracks, vectors)
    with torch.no_grad():
        expected = small_matcher.modules["matcher"](**{name: torch.from_numpy(a) for name, a in inputs.items()}).numpy()
    actual = matcher.vectors(tracks, vectors)
    assert actual.dtype == np.float32
    assert actual.shape == (37, 12) == (37, matcher.dims)
    assert np.abs(actual - expected).max() < 1e-5


def test_a_catalogue_larger_than_a_batch(matcher):
    tracks, vectors = example(2500)
    together = matcher.vectors(tracks, vectors)
    for start in (0, 1000, 1023, 1024, 2499):
        alone = matcher.vectors(
            tracks[start : start + 1], {name: part[start : start + 1] for name, part in vectors.items()}
        )
        assert np.abs(alone - together[start]).max() < 1e-5
    assert matcher.vectors([], {"audio": np.empty((0, 64), np.float32)}).shape == (0, 12)


def test_many_threads_at_once(matcher):
    tracks, vectors = example(50)
    expected = matcher.vectors(tracks, vectors)
    with ThreadPoolExecutor(12) as pool:
        for actual in pool.map(lambda _: matcher.vectors(tracks, vectors), range(60)):
            assert np.array_equal(actual, expected)


def test_vectors_that_do_not_fit(matcher):
    with pytest.raises(FieldsError, match="audio"):
        matcher.vectors([Track("t")], {})


def test_damaged_and_mismatched_folders(small_matcher, tmp_path):
    folder = tmp_path / "matcher"
    shutil.copytree(small_matcher.directory, folder)
    fields = json.loads((folder / "fields.json").read_text())
    fields["specs"] = [spec for spec in fields["specs"] if spec["kind"] != "numeric"]
    (folder / "fields.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"matcher.onnx reads .*numeric.* and fields.json gives"):
        Matcher.open(folder)
    (folder / "fields.json").write_text("{")
    with pytest.raises(FieldsError, match="damaged"):
        Matcher.open(folder)
    (folder / "fields.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Matcher.open(folder)
    shutil.copy(small_matcher.directory / "fields.json", folder)
    (folder / "matcher.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="no usable model"):
        Matcher.open(folder)
