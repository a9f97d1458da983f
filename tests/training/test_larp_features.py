"""--freeze: encoders' outputs computed once, heads trained on them, encoders as they were."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from larp_small import TINY, stages_of
from safetensors.torch import load_file

from index.models.caption import caption
from index.models.encoder import Encoder
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp import features as features_module
from training.larp.checkpoint import load_larp
from training.larp.config import LarpConfig, SettingsError
from training.larp.content import LiveContent, encode
from training.larp.export import export_towers
from training.larp.features import FeatureError, FrozenContent
from training.larp.model import Larp
from training.larp.presets import larp_preset
from training.larp.task import LarpTask
from training.larp.towers import build_larp
from training.larp.training import Run, train_larp
from training.progress import Silent

FROZEN = replace(TINY, freeze=True)
BATCH = 4  # tracks encoded at once here, so that there is something to break off


@pytest.fixture
def live(dataset: DataSet, clips: ClipCache) -> LiveContent:
    return LiveContent(dataset, clips, FROZEN)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the towers, one for each track that a encoder reads from here on."""
    seen: list[str] = []
    read = LiveContent.inputs

    def inputs(self: LiveContent, name: str, rows: np.ndarray, *rest: object) -> object:
        seen.extend([name] * len(rows))
        return read(self, name, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveContent, "inputs", inputs)
    monkeypatch.setattr(features_module, "BATCH", BATCH)
    monkeypatch.setattr(features_module, "_FLUSH", 1)
    return seen


def larp_of(live: LiveContent, seed: int = 0, config: LarpConfig = FROZEN) -> Larp:
    torch.manual_seed(seed)
    return build_larp(config, live.captions(np.arange(6))).eval()


# ----- features -----


@torch.no_grad()
def test_features_are_what_the_encoders_say(live: LiveContent, tmp_path: Path) -> None:
    larp = larp_of(live)
    frozen = FrozenContent.build(larp, live, tmp_path, Silent())
    rows = np.array([3, 0, 7])
    for name in ("audio", "text"):
        (found,) = frozen.inputs(name, rows, larp)
        expected = larp.tower(name).pooled(*live.inputs(name, rows, larp))
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert np.array_equal(frozen.available(name), live.available(name))
        vectors, exact = (encode(larp, name, content, rows) for content in (frozen, live))
        assert (vectors * exact).sum(1).min() > 0.999
    sizes = {path.suffix: path.stat().st_size for path in tmp_path.iterdir() if path.name.startswith("audio")}
    assert sizes[".f16"] == 2 * 32 * len(live.available("audio"))


def test_features_are_computed_once(live: LiveContent, tmp_path: Path, counted: list[str]) -> None:
    larp = larp_of(live)
    FrozenContent.build(larp, live, tmp_path, Silent())
    assert len(counted) == live.available("audio").sum() + live.available("text").sum()
    counted.clear()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    FrozenContent.build(larp_of(live), live, tmp_path, Silent())
    assert counted == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_computation_broken_off_goes_on(live: LiveContent, tmp_path: Path, counted: list[str]) -> None:
    larp = larp_of(live)
    whole = FrozenContent.build(larp, live, tmp_path / "whole", Silent())
    counted.clear()
    encoded, count = features_module._encoded, 0

    def some(*arguments: object) -> object:
        nonlocal count
        for found in encoded(*arguments):  # type: ignore[arg-type]
            if count == 3:
                raise KeyboardInterrupt
            count += 1
            yield found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "_encoded", some)
        with pytest.raises(KeyboardInterrupt):
            FrozenContent.build(larp, live, tmp_path / "broken", Silent())
    (note,) = (tmp_path / "broken").glob("audio-*.json")
    assert json.loads(note.read_text())["done"] == 3 * BATCH
    counted.clear()
    again = FrozenContent.build(larp, live, tmp_path / "broken", Silent())
    assert counted.count("audio") == live.available("audio").sum() - 3 * BATCH
    for name in ("audio", "text"):
        assert np.array_equal(again.features[name], whole.features[name])


@pytest.mark.parametrize("changed", ["weights", "captions", "heads", "damage"])
def test_what_they_depend_on_makes_them_anew(
    live: LiveContent, dataset: DataSet, clips: ClipCache, tmp_path: Path, counted: list[str], changed: str
) -> None:
    FrozenContent.build(larp_of(live), live, tmp_path, Silent())
    counted.clear()
    if changed == "weights":
        larp = larp_of(live)
        with torch.no_grad():
            next(larp.text.encoder.parameters())[0, 0] += 1e-3
    elif changed == "captions":
        live = LiveContent(dataset, clips, replace(FROZEN, clauses=("title",)))
        larp = larp_of(LiveContent(dataset, clips, FROZEN))
    elif changed == "heads":
        larp = larp_of(live, config=replace(FROZEN, text=replace(FROZEN.text, heads=4)))
    else:
        larp = larp_of(live)
        (path,) = tmp_path.glob("text-*.f16")
        path.write_bytes(path.read_bytes()[:-1])
    FrozenContent.build(larp, live, tmp_path, Silent())
    assert set(counted) == {"text"}
    assert len(counted) == live.available("text").sum()


@pytest.mark.parametrize("factor", [1e7, float("nan")])
def test_what_does_not_fit_is_an_error(live: LiveContent, tmp_path: Path, factor: float) -> None:
    larp = larp_of(live)
    with torch.no_grad():
        for parameter in larp.text.encoder.encoder.layer[-1].output.LayerNorm.parameters():
            parameter.mul_(factor).add_(factor)
    with pytest.raises(FeatureError, match="text encoder's outputs do not fit 16 bit: train it without --freeze"):
        FrozenContent.build(larp, live, tmp_path, Silent())


# ----- training -----


def test_heads_learn_and_encoders_stay(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    untrained: dict[str, torch.Tensor] = {}
    kept: list[set[str]] = []

    def note(name: str, larp: Larp, _: object) -> None:
        if name == "untrained":
            untrained.update({key: value.clone() for key, value in larp.state_dict().items()})

    state_dict = LarpTask.state_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LarpTask, "state_dict", lambda task: (found := state_dict(task), kept.append({*found["model"]}))[0]
        )
        run = Run(tmp_path / "larp", tmp_path / "saves", tmp_path / "features", after_stage=note)
        result = train_larp(dataset, clips, run, FROZEN, Silent())
    assert list(result.stages) == ["wtc", "wtc+ttc", "wtc+ttc+tpc"]
    trained = load_file(tmp_path / "larp/model.safetensors")
    assert trained.keys() == untrained.keys()
    for key, value in trained.items():
        if ".encoder." in key:
            assert torch.equal(value, untrained[key]), key
        elif ".head." in key or key == "temperature":
            assert not torch.equal(value, untrained[key]), key
    assert kept
    for keys in kept:
        assert not [key for key in keys if ".encoder." in key]
        assert {"online.audio.head.weight", "twins.text.weight", "queue.ids", "audio_table"} <= keys


def test_the_release_gives_the_frozen_vectors(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    found: dict[str, np.ndarray] = {}
    rows = np.array([0, 3, 9])

    def note(_: str, larp: Larp, content: FrozenContent) -> None:
        found.update({name: encode(larp, name, content, rows) for name in larp.names})

    run = Run(tmp_path / "larp", None, tmp_path / "features", after_stage=note)  # type: ignore[arg-type]
    # A random encoder says nearly the same of all captions: to spread that is to spread the rounding to 16 bit too.
    train_larp(dataset, clips, run, stages_of(replace(FROZEN, spread=False), 1, 3), Silent())
    larp = load_larp(tmp_path / "larp")
    export_towers(larp, tmp_path / "encoder")
    encoder = Encoder.open(tmp_path / "encoder")
    heard = encoder.audio(clips.crops(rows, None)[:, 0])
    read = encoder.text([caption(dataset.tracks[row], larp.clauses) for row in rows])
    assert (heard * found["audio"]).sum(1).min() > 0.999
    assert (read * found["text"]).sum(1).min() > 0.999


def test_captions_cannot_vary_that_are_read_once() -> None:
    with pytest.raises(SettingsError, match="drop_clause"):
        larp_preset("cpu", augment=replace(TINY.augment, drop_clause={"title": 0.5}))
    assert larp_preset("cpu").freeze
