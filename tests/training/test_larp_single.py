"""A model of one tower: trained, saved, exported, and used with the other content passed over."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from larp_small import TINY
from safetensors.torch import load_file

from index.models.caption import caption
from index.models.encoder import Encoder, EncoderError, encoder_id
from index.models.onnxmodel import ModelError
from index.tracks.track import Track
from training.data.clips import ClipCache
from training.data.dataset import VALID, DataSet
from training.larp.checkpoint import load_larp, save_larp
from training.larp.content import Content, LiveContent, encode
from training.larp.corpus import CorpusError
from training.larp.export import export_towers
from training.larp.model import Larp
from training.larp.result import LarpResult
from training.larp.training import Run, train_larp
from training.progress import Progress, Silent

OTHER = {"audio": "text", "text": "audio"}
FILES = {"audio": ["audio.onnx", "config.json"], "text": ["config.json", "text.onnx", "tokenizer.json"]}


@pytest.fixture(scope="module", params=["audio", "text"])
def trained(
    request: pytest.FixtureRequest, dataset: DataSet, clips: ClipCache, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, LarpResult, str]:
    """The tower's name, a folder with larp/ and encoder/, the result, and what was said."""
    name, folder, said = request.param, tmp_path_factory.mktemp("one"), io.StringIO()
    config = replace(TINY, towers=(name,))
    given = clips if name == "audio" else None

    def keep(stage: str, larp: Larp, _: Content) -> None:
        if stage == "untrained":
            save_larp(larp, config, folder / "untrained", "")

    run = Run(folder / "larp", after_stage=keep)
    result = train_larp(dataset, given, run, config, Progress(said, interval_s=1e9))
    export_towers(load_larp(folder / "larp"), folder / "encoder")
    return name, folder, result, said.getvalue()


def test_it_learns_from_playlists_alone(trained: tuple[str, Path, LarpResult, str]) -> None:
    name, folder, result, said = trained
    assert list(result.stages) == ["ttc", "ttc+tpc"]
    assert "the stage WTC is left out: within-track contrast needs two towers" in said
    history = result.stages["ttc+tpc"].history
    assert all(np.isfinite([*row.values()]).all() and {"ttc", "tpc"} <= row.keys() for row in history)
    assert not torch.equal(*(load_larp(folder / path).tower(name).head.weight for path in ("larp", "untrained")))
    weights = load_file(folder / "larp/model.safetensors")
    assert {key.split(".")[0] for key in weights} == {name, "temperature", "audio_share"}
    assert (folder / "larp/tokenizer.json").exists() == (name == "text")
    card = (folder / "larp/README.md").read_text()
    assert f"the vector of the {name} tower, the only one." in card
    assert f"- {OTHER[name]} tower" not in card


def test_a_checkpoint_is_loaded_as_it_was(trained: tuple[str, Path, LarpResult, str]) -> None:
    name, folder, _, _ = trained
    larp = load_larp(folder / "larp")
    assert larp.names == (name,)
    assert getattr(larp, OTHER[name]) is None
    assert larp.state_dict().keys() == load_file(folder / "larp/model.safetensors").keys()


@torch.no_grad()
def test_the_service_encodes_with_the_one_there_is(
    trained: tuple[str, Path, LarpResult, str], dataset: DataSet, clips: ClipCache
) -> None:
    name, folder, _, _ = trained
    assert sorted(path.name for path in (folder / "encoder").iterdir()) == FILES[name]
    encoder, larp = Encoder.open(folder / "encoder"), load_larp(folder / "larp")
    assert (encoder.hears, encoder.reads) == (name == "audio", name == "text")
    mel, words = clips.crops(np.array([3]), None)[0], caption(dataset.tracks[3], larp.clauses)
    found = encoder.track(mel, words, "la la")
    expected = encode(larp, name, LiveContent(dataset, clips, TINY), np.array([3]))[0]
    assert found.continuation @ expected > 0.9999
    assert np.array_equal(found.continuation, getattr(found, name))
    assert getattr(found, OTHER[name]) is None
    assert (found.lyrics is None) == (name == "audio")


def test_a_track_with_nothing_for_it_is_an_error_that_says_so(
    trained: tuple[str, Path, LarpResult, str], clips: ClipCache
) -> None:
    name, folder, _, _ = trained
    encoder, mel = Encoder.open(folder / "encoder"), clips.crops(np.array([3]), None)[0]
    if name == "audio":
        with pytest.raises(EncoderError, match="no audio, and this model reads no text"):
            encoder.track(None, "The track Nacht", "la la")
    else:
        for lyrics in (None, "la la"):
            with pytest.raises(EncoderError, match="no title, artist or album, and this model hears no audio"):
                encoder.track(mel, " ", lyrics)
    assert caption(Track("x")) == ""


def test_the_config_names_its_towers(trained: tuple[str, Path, LarpResult, str], tmp_path: Path) -> None:
    name, folder, _, _ = trained
    settings = json.loads((folder / "encoder/config.json").read_text())
    assert settings["towers"] == [name]
    assert f"model_type_{OTHER[name]}" not in settings
    assert len(encoder_id(folder / "encoder")) == 64
    for wrong in ([], ["smell"]):
        (tmp_path / "config.json").write_text(json.dumps(settings | {"towers": wrong}))
        with pytest.raises(ModelError, match="names towers"):
            Encoder.open(tmp_path)
    del settings["towers"]  # as before there were models of one tower
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="lacks"):
        Encoder.open(tmp_path)


def test_without_playlists_one_tower_has_nothing_to_learn_from(dataset: DataSet, tmp_path: Path) -> None:
    lonely = replace(dataset, playlist_split=np.full_like(dataset.playlist_split, VALID))
    with pytest.raises(CorpusError, match="no stage has anything to learn from"):
        train_larp(lonely, None, Run(tmp_path / "larp"), replace(TINY, towers=("text",)), Silent())
    assert not (tmp_path / "larp").exists()
