"""Towers from checkpoints and vocabularies from captions."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, BertModel, ClapAudioConfig, ClapAudioModel, ClapConfig, ClapModel

from training.larp.checkpoint import load_config, load_larp, save_larp
from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.model import Larp
from training.larp.towers import CheckpointError, build_larp
from training.larp.vocabulary import SPECIAL, train_vocabulary

AUDIO: dict[str, Any] = {
    "patch_size": 16,
    "patch_stride": [16, 16],
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "num_hidden_layers": 2,
}
TEXT: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
CAPTIONS = ["The track Nacht by Clara", "The track Morgen by Robert", "Der Abend über Wien"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded or built here, nothing may reach for the network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    folder = tmp_path / "bert"
    BertModel(BertConfig(**TEXT)).save_pretrained(folder)
    train_vocabulary(CAPTIONS, 80).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def audio_folder(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    folder = tmp_path / "htsat"
    ClapAudioModel(ClapAudioConfig(**AUDIO)).save_pretrained(folder)
    return folder


def built(audio: Path | None = None, text: Path | None = None) -> Larp:
    config = LarpConfig(
        audio=AudioTowerConfig(
            str(audio) if audio else None, width=16, patch=16, depths=(1, 1), heads=(1, 2), dropout=0.0
        ),
        text=TextTowerConfig(str(text) if text else None, width=16, layers=1, heads=2),
        dims=8,
    )
    return build_larp(config, CAPTIONS).eval()


@torch.no_grad()
def test_a_text_checkpoint_gives_its_own_vectors(text_folder: Path) -> None:
    larp = built(text=text_folder)
    own = BertModel.from_pretrained(text_folder).eval()
    ids, mask = larp.tokens(CAPTIONS)
    expected = own(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    found = larp.text.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    assert torch.equal(found, expected)
    assert larp.max_tokens == 20  # the checkpoint's, where that is shorter
    assert larp.tokenizer.to_str() != ""
    assert not [name for name, _ in larp.named_parameters() if "pooler" in name]


@torch.no_grad()
def test_an_audio_checkpoint_gives_its_own_vectors(audio_folder: Path) -> None:
    clips = torch.randn(2, 1, 1001, 64)
    expected = ClapAudioModel.from_pretrained(audio_folder).eval()(clips).pooler_output
    assert torch.equal(built(audio=audio_folder).audio.encoder(clips).pooler_output, expected)


@torch.no_grad()
def test_the_audio_half_of_a_whole_clap_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(3)
    clap = ClapModel(
        ClapConfig(audio_config=AUDIO, text_config={**TEXT, "pad_token_id": 1, "max_position_embeddings": 30})
    )
    clap.save_pretrained(tmp_path / "clap")
    clips = torch.randn(1, 1, 1001, 64)
    expected = clap.eval().audio_model(clips).pooler_output
    assert torch.equal(built(audio=tmp_path / "clap").audio.encoder(clips).pooler_output, expected)


@torch.no_grad()
def test_a_pretraining_head_beside_bert_is_left_aside(tmp_path: Path) -> None:
    torch.manual_seed(4)
    whole = BertForMaskedLM(BertConfig(**TEXT))
    whole.save_pretrained(tmp_path / "mlm")
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "mlm/tokenizer.json"))
    larp = built(text=tmp_path / "mlm")
    ids, mask = larp.tokens(CAPTIONS)
    expected = whole.eval().bert(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(larp.text.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, expected)


@pytest.mark.parametrize("tower", ["audio", "text"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched"])
def test_keys_that_do_not_match_are_named(tower: str, damage: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(f"{tower}_folder")
    path = folder / "model.safetensors"
    weights = load_file(path)
    key = sorted(name for name in weights if name.endswith("weight") and "pooler" not in name)[0]
    if damage == "missing":
        del weights[key]
    elif damage == "unexpected":
        key = "encoder.layer.7.renamed.weight"
        weights[key] = torch.zeros(2)
    else:
        weights[key] = torch.zeros(3, 3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{damage} keys") as caught:
        built(**{tower: folder})
    assert key in caught.value.detail


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, audio_folder: Path, text_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        built(audio=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="'bert' model; the audio tower wants"):
        built(audio=text_folder)
    (text_folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        built(text=text_folder)
    (audio_folder / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        built(audio=audio_folder)


def test_pickled_weights_are_not_even_looked_at(audio_folder: Path) -> None:
    os.rename(audio_folder / "model.safetensors", audio_folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        built(audio=audio_folder)


# ----- vocabulary -----


def test_word_pieces_frame_captions_as_bert_does() -> None:
    tokenizer = train_vocabulary(CAPTIONS * 3, 60)
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    encoding = tokenizer.encode("THE TRACK Übér")
    assert encoding.tokens[:3] == ["[CLS]", "the", "track"]
    assert encoding.tokens[-1] == "[SEP]"
    assert "[UNK]" not in encoding.tokens  # without case and accents, and from the captions' letters
    assert tokenizer.encode("Жизнь").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 60


def test_the_same_captions_give_the_same_vocabulary() -> None:
    captions = [f"The track {a}{b} by {b}{c} {a}" for a in "abcde" for b in "fghij" for c in "klmno"]
    assert len({train_vocabulary(captions, 90).to_str() for _ in range(4)}) == 1


# ----- on disk -----


@torch.no_grad()
def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    larp = built()
    config = LarpConfig(text=TextTowerConfig(width=16, layers=1, heads=2), clauses=("title", "artist"), dims=8)
    larp.clauses = config.clauses
    save_larp(larp, config, tmp_path / "model", "# card\n")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    again = load_larp(tmp_path / "model")
    clips = torch.randn(1, 1, 1001, 64)
    assert not again.training
    assert again.clauses == ("title", "artist")
    assert torch.equal(again.encode_audio(clips), larp.encode_audio(clips))
    assert torch.equal(again.encode_text(CAPTIONS), larp.encode_text(CAPTIONS))
    assert load_config(tmp_path / "model") == config


def test_a_checkpoint_is_named_without_its_folder(tmp_path: Path) -> None:
    config = LarpConfig(audio=AudioTowerConfig(str(tmp_path / "clap-htsat-unfused") + "/"))
    text = json.dumps(config.to_json())
    assert "clap-htsat-unfused" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("damage", ["missing", "format", "weights", "setting", "json"])
def test_a_damaged_model_is_refused(tmp_path: Path, damage: str) -> None:
    save_larp(built(), LarpConfig(dims=8), tmp_path, "")
    settings = json.loads((tmp_path / "config.json").read_text())
    if damage == "missing":
        (tmp_path / "tokenizer.json").unlink()
    elif damage == "format":
        settings["format"] = 99
    elif damage == "weights":
        weights = load_file(tmp_path / "model.safetensors")
        weights.pop("audio.head.weight")
        save_file(weights, tmp_path / "model.safetensors")
    elif damage == "setting":
        settings["larp"]["colour"] = "blue"
    (tmp_path / "config.json").write_text("{" if damage == "json" else json.dumps(settings))
    with pytest.raises(CheckpointError):
        load_larp(tmp_path)


def test_a_tokenizer_of_any_kind_is_fitted_to_the_tower(text_folder: Path) -> None:
    Tokenizer.from_file(str(text_folder / "tokenizer.json")).save(str(text_folder / "tokenizer.json"))
    ids, mask = built(text=text_folder).tokens(["Nacht", "The track Morgen by Robert " * 9])
    assert ids.shape == mask.shape == (2, 20)
    assert mask[0].sum() < 20
    assert (ids[0][mask[0] == 0] == 0).all()
