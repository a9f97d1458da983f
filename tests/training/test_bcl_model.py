"""The BCL encoder against its equations, its unknowns, and the config and fields it is built from."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from index.models.fields import FieldSet, FieldSpec
from index.tracks.track import Track
from training.bcl.config import PRESETS, BclConfig, BclError, bcl_preset
from training.bcl.fields import choose_fields
from training.bcl.model import Bcl, forget

SPECS = (
    FieldSpec("artist", "categorical", "artist", 8),
    FieldSpec("genres", "multi", "genres", 8),
    FieldSpec("year", "numeric", "year", 8),
    FieldSpec("audio", "dense", "audio", 8),
)
CONFIG = BclConfig(fields=SPECS, field_dims=8, hidden=(16,), dims=12, projected=6)


def tracks(n: int = 20) -> list[Track]:
    return [
        Track(
            f"t{i}",
            artist=f"artist {i % 4}" if i % 5 else None,
            genres=("rock", "pop")[: i % 3],
            attributes={"year": 1950.0 + i} if i % 7 else {},
        )
        for i in range(n)
    ]


def vectors(n: int = 20) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(0).standard_normal((n, 24)).astype(np.float32)
    rows[::6] = np.nan
    return {"audio": rows}


@pytest.fixture
def model() -> Bcl:
    torch.manual_seed(0)
    return Bcl(FieldSet.fit(SPECS, tracks(), vectors()), CONFIG).eval()


def arrays(model: Bcl, n: int = 20) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a) for name, a in model.fields.transform(tracks(n), vectors(n)).items()}


def numpy_forward(model: Bcl, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """z = l2(MLP(concat_f LayerNorm(e_f))), one track at a time, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    out = []
    for i in range(len(inputs["dense"])):
        e = [w["embedding.categorical.0.weight"][int(inputs["categorical"][i, 0])]]
        values = [int(v) for v in inputs["multi"][i, 0] if v > 0]
        table = w["embedding.multi.0.weight"]
        e.append(np.mean([table[v] for v in values], axis=0) if values else table[0])
        line = float(inputs["numeric"][i, 0]) * w["embedding.slope"][0] + w["embedding.offset"][0]
        e.append(line if inputs["numeric_known"][i, 0] else w["embedding.numeric_unknown"][0])
        for b in range(3):
            known = bool(inputs["dense_known"][i, b])
            e.append(inputs["dense"][i, b].double().numpy() if known else w["embedding.dense_unknown"][b])
        normed = [(x - x.mean()) / np.sqrt(x.var() + 1e-5) for x in e]
        x = np.concatenate([w["norm_weight"][f] * x + w["norm_bias"][f] for f, x in enumerate(normed)])
        h = w["mlp.0.weight"] @ x + w["mlp.0.bias"]
        h = h * 0.5 * (1 + torch.erf(torch.tensor(h) / np.sqrt(2)).numpy())  # GELU
        z = w["mlp.3.weight"] @ h + w["mlp.3.bias"]
        out.append(z / np.linalg.norm(z))
    return np.array(out)


def test_forward_is_the_equation(model):
    inputs = arrays(model)
    with torch.no_grad():
        found = model(inputs).numpy()
    assert found == pytest.approx(numpy_forward(model, inputs), abs=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    with torch.no_grad():
        assert model.project(model(inputs)).norm(dim=1).numpy() == pytest.approx(np.ones(20), abs=1e-5)


def test_every_parameter_of_a_view_learns(model):
    inputs = arrays(model)
    fields = model.normalised(model.embedding(inputs))
    view = torch.where(torch.arange(6)[None, :, None] < 3, fields, model.mask)
    other = torch.where(torch.arange(6)[None, :, None] < 3, model.mask, fields)
    (model.project(model.encode(torch.cat([view, other]))).sum() / model.temperature).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_forgetting_everything_makes_all_tracks_unknown(model):
    generator = torch.Generator().manual_seed(0)
    unknown = forget(arrays(model), model.fields, 1.0, generator)
    with torch.no_grad():
        found = model(unknown)
    assert torch.allclose(found, found[:1].expand_as(found))
    kept = forget(arrays(model), model.fields, 0.0, generator)
    assert all(torch.equal(kept[name], array) for name, array in arrays(model).items())


def test_forgetting_takes_its_share_and_dense_vectors_whole():
    many = [Track(f"t{i}", artist="a", genres=("rock", "pop"), attributes={"year": 1.0 * i}) for i in range(3000)]
    rows = {"audio": np.ones((3000, 24), np.float32)}
    fields = FieldSet.fit(SPECS, many, rows)
    inputs = {name: torch.from_numpy(a) for name, a in fields.transform(many, rows).items()}
    out = forget(inputs, fields, 0.3, torch.Generator().manual_seed(1))
    for name in ("categorical", "numeric_known", "dense_known"):
        assert (out[name] == 0).double().mean() == pytest.approx(0.3, abs=0.04)
    assert (out["dense_known"].std(1) == 0).all()
    gone = (out["multi"] == 0).all(2)
    assert gone.double().mean() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(out["multi"][~gone], inputs["multi"][~gone])
    assert torch.equal(out["dense"], inputs["dense"])
    assert (inputs["categorical"] == 1).all()  # the caller's arrays are untouched


def test_a_new_artist_is_the_unknown_artist(model):
    new, nameless = (Track("x", artist=name, attributes={"year": 1960.0}) for name in ("nobody yet", None))
    rows = {"audio": np.ones((2, 24), np.float32)}
    with torch.no_grad():
        found = model({k: torch.from_numpy(a) for k, a in model.fields.transform([new, nameless], rows).items()})
    assert torch.equal(found[0], found[1])


def test_config_survives_json():
    config = replace(
        bcl_preset("demo", seed=7), fields=SPECS, field_dims=8, hidden=(8, 4), augmentations=("span_mask",)
    )
    assert BclConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "loop": 3}'])
def test_a_damaged_config_is_an_error(text):
    with pytest.raises(BclError, match=r"train again"):
        BclConfig.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dims": 0},
        {"batch": 0},
        {"items": 3},
        {"unknown_rate": 1.0},
        {"correlation_alpha": 1.5},
        {"correlation_batch": 3},
        {"augmentations": ()},
        {"augmentations": ("blur",)},
        {"contrastive_weight": -1.0},
        {"fields": (FieldSpec("audio", "dense", "audio", 16),)},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="|".join(wrong)):
        BclConfig(**wrong)


def test_every_setting_has_a_line_of_documentation():
    import ast
    import inspect

    body = ast.parse(inspect.getsource(BclConfig)).body[0].body
    settings = [n for n in body if isinstance(n, ast.AnnAssign)]
    documented = [a for a, b in pairwise(body) if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)]
    assert len(settings) == len(BclConfig.__dataclass_fields__)
    assert documented == settings


def test_fields_are_chosen_by_what_the_tracks_hold():
    rows = {"audio": np.ones((3, 64), np.float32), "text": np.full((3, 64), np.nan, np.float32)}
    some = [
        Track("a", title="x", artist="A", language="en", duration_s=15.0, genres=("g",), release_date="2020-01-01",
              attributes={"born": 1850.0, "moods": ["calm"], "poet": "P", "same": "s"}),
        Track("b", title="y", artist="B", language="en", duration_s=15.0, release_date="2021-01-01",
              attributes={"born": 1860.0, "moods": ["wild"], "poet": "Q", "same": "s"}),
        Track("c", title="z"),
    ]  # fmt: skip
    found = choose_fields(some, rows, BclConfig())
    assert [(s.name, s.kind) for s in found.fields] == [
        ("artist", "categorical"),
        ("genres", "multi"),
        ("release_date", "numeric"),
        ("born", "numeric"),
        ("moods", "multi"),
        ("poet", "categorical"),
        ("audio", "dense"),
    ]
    assert choose_fields(some, rows, CONFIG) is CONFIG
    for tags, slots in ((3, 8), (20, 20), (50, 32)):
        many = [*some, Track("d", genres=[str(n) for n in range(tags)], attributes={"moods": ["m"] * tags})]
        specs = choose_fields(many, {}, BclConfig()).fields
        assert [s.slots for s in specs if s.kind == "multi"] == [slots, slots]
    dated = [replace(t, album=t.title, attributes={"text": t.title, "added": f"202{n}-01-31"})
             for n, t in enumerate(some)]  # fmt: skip
    rows = {"text": np.ones((3, 64), np.float32)}
    assert [(s.name, s.kind, s.column) for s in choose_fields(dated, rows, BclConfig(), ["album", "text"]).fields] == [
        ("artist", "categorical", "artist"),
        ("album", "categorical", "album"),
        ("genres", "multi", "genres"),
        ("release_date", "numeric", "release_date"),
        ("added", "numeric", "added"),
        ("text column", "categorical", "text"),
        ("text", "dense", "text"),
    ]
    with pytest.raises(BclError) as caught:
        choose_fields([Track("a"), Track("b")], {}, BclConfig())
    assert caught.value.code == "bcl_no_fields"


def test_presets_take_a_seed_and_changes_and_refuse_what_they_do_not_know():
    for name in PRESETS:
        assert bcl_preset(name, seed=5, dims=64) == replace(
            PRESETS[name], dims=64, loop=replace(PRESETS[name].loop, seed=5)
        )
    for wrong in ({"name": "huge"}, {"name": "demo", "dims": 0}, {"name": "demo", "depth": 3}):
        with pytest.raises(BclError) as caught:
            bcl_preset(**wrong)
        assert caught.value.code == "bcl_setting"
