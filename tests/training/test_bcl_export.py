"""matcher.onnx as the service runs it (OpenVINO) against the torch model it was exported from."""

import re
from itertools import combinations

import numpy as np
import onnx
import pytest
import torch

from index.models.fields import FieldSet, FieldSpec
from index.models.matcher import Matcher
from index.tracks.track import Track
from training.bcl.checkpoint import bcl_vectors
from training.bcl.config import BclConfig
from training.bcl.export import export_matcher
from training.bcl.model import Bcl

SPECS = {
    "categorical": [FieldSpec("artist", "categorical", "artist"), FieldSpec("language", "categorical", "language")],
    "multi": [FieldSpec("genres", "multi", "genres")],
    "numeric": [FieldSpec("year", "numeric", "year")],
    "dense": [FieldSpec("audio", "dense", "audio"), FieldSpec("text", "dense", "text")],
}
KINDS = [
    tuple(SPECS),
    *[kinds for n in (1, 2) for kinds in combinations(SPECS, n)][::2],  # half of the others: each takes seconds
]


def tracks(n: int) -> list[Track]:
    rng = np.random.default_rng(n)
    return [
        Track(
            f"t{i}",
            artist=f"artist {rng.integers(9)}" if i % 4 else None,
            language=("en", "de", "fr", None)[rng.integers(4)],
            genres=tuple(f"g{g}" for g in rng.integers(0, 12, rng.integers(0, 11))),
            attributes={"year": float(rng.integers(1700, 2020))} if i % 3 else {},
        )
        for i in range(n)
    ]


def vectors(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    rows = {name: rng.standard_normal((n, 64)).astype(np.float32) for name in ("audio", "text")}
    rows["audio"][::5] = np.nan
    rows["text"][1::3] = np.nan
    return rows


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_openvino_agrees_with_torch(kinds, tmp_path):
    specs = tuple(spec for kind in kinds for spec in SPECS[kind])
    fields = FieldSet.fit(specs, tracks(50), vectors(50))
    torch.manual_seed(0)
    model = Bcl(fields, BclConfig(fields=specs, hidden=(64, 32), dims=128, content_dims=32)).eval()
    rows = fields.transform(tracks(50), vectors(50))
    model.content.fit({name: torch.from_numpy(part) for name, part in rows.items()}, np.arange(50), seed=0)
    export_matcher(model, tmp_path / "matcher")
    assert sorted(p.name for p in (tmp_path / "matcher").iterdir()) == ["fields.json", "matcher.onnx"]
    matcher = Matcher.open(tmp_path / "matcher", threads=1)
    assert matcher.dims == 160
    for n in (1, 2, 33):  # other batches than the one traced
        fresh, rows = tracks(n), vectors(n)
        expected, found = bcl_vectors(model, fresh, rows), matcher.vectors(fresh, rows)
        assert found.shape == (n, 160)
        assert (found * expected).sum(1).min() >= 0.9999
        assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(n), abs=1e-5)


def test_the_file_is_whole_the_same_every_time_and_names_no_machine(tmp_path):
    specs = tuple(spec for kind in SPECS for spec in SPECS[kind])
    fields = FieldSet.fit(specs, tracks(20), vectors(20))
    model = Bcl(fields, BclConfig(fields=specs, hidden=(16,)))
    written = []
    for name in ("a", "b"):
        export_matcher(model, tmp_path / name)
        written.append((tmp_path / name / "matcher.onnx").read_bytes())
    assert written[0] == written[1]
    assert re.findall(rb"/(?:[\w.-]+/)+[\w.-]+\.py", written[0]) == []
    loaded = onnx.load_from_string(written[0])
    onnx.checker.check_model(loaded)
    assert [i.name for i in loaded.graph.input] == list(fields.transform(tracks(1), vectors(1)))
    assert [o.name for o in loaded.graph.output] == ["vector"]
    assert not any(t.external_data for t in loaded.graph.initializer)
    assert FieldSet.from_json((tmp_path / "a/fields.json").read_text(encoding="utf-8")) == fields
