"""Towers from checkpoints and vocabularies from captions."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from training.larp.checkpoint import load_larp, save_larp
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


def built(audio: Path | str | None = None, text: Path | str | None = None) -> Larp:
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
    with pytest.raises(CheckpointError, match="neither a folder nor a name"):
        built(audio=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        built(audio=tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        built(audio=text_folder)
    (text_folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        built(text=text_folder)
    (audio_folder / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        built(audio=audio_folder)


@torch.no_grad()
def test_a_checkpoint_as_old_as_bert_base_uncased_is_read(tmp_path: Path) -> None:
    torch.manual_seed(6)
    whole = BertForPreTraining(BertConfig(**TEXT))
    whole.save_pretrained(tmp_path / "old")
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "old/tokenizer.json"))
    path = tmp_path / "old/model.safetensors"
    weights = load_file(path)
    named = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {}
    for key, tensor in weights.items():
        ending = next((ending for ending in named if key.endswith(ending)), "")
        old[key.removesuffix(ending) + named.get(ending, "")] = tensor
    assert any(key.endswith("LayerNorm.gamma") for key in old)
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    save_file(old, path, metadata={"format": "pt"})
    larp = built(text=tmp_path / "old")
    ids, mask = larp.tokens(CAPTIONS)
    expected = whole.eval().bert(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(larp.text.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, expected)


DISTIL: dict[str, Any] = {"vocab_size": 80, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}


@torch.no_grad()
@pytest.mark.parametrize(
    ("whole", "own"),
    [
        (lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTIL)), DistilBertModel),
        (lambda: RobertaForMaskedLM(RobertaConfig(**TEXT)), RobertaModel),
        (lambda: ElectraForPreTraining(ElectraConfig(**TEXT, embedding_size=16)), ElectraModel),
    ],
)
def test_berts_relatives_are_text_towers_too(tmp_path: Path, whole: Any, own: Any) -> None:
    torch.manual_seed(7)
    whole().save_pretrained(tmp_path / "relative")
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "relative/tokenizer.json"))
    config = LarpConfig(
        text=TextTowerConfig(str(tmp_path / "relative"), max_tokens=16), towers=("text",), dims=8, clauses=("title",)
    )
    larp = build_larp(config, []).eval()
    ids, mask = larp.tokens(CAPTIONS)
    expected = own.from_pretrained(tmp_path / "relative").eval()(input_ids=ids, attention_mask=mask)
    assert torch.equal(larp.text.pooled(ids, mask), expected.last_hidden_state[:, 0])
    save_larp(larp, config, tmp_path / "larp", "")
    assert torch.equal(load_larp(tmp_path / "larp").encode_text(CAPTIONS), larp.encode_text(CAPTIONS))


@torch.no_grad()
@pytest.mark.parametrize("change", ["without", "with another's"])
def test_buffers_that_follow_from_the_sizes_are_no_weights(audio_folder: Path, change: str) -> None:
    path = audio_folder / "model.safetensors"
    weights = load_file(path)
    indices = [key for key in weights if key.endswith("relative_position_index")]
    assert indices
    if change == "without":
        weights = {key: w for key, w in weights.items() if key not in indices}
    else:
        weights["audio_encoder.layers.7.blocks.0.attention.self.relative_position_index"] = weights[indices[0]].clone()
    clips = torch.randn(1, 1, 1001, 64)
    expected = ClapAudioModel.from_pretrained(audio_folder).eval()(clips).pooler_output
    save_file(weights, path, metadata={"format": "pt"})
    assert torch.equal(built(audio=audio_folder).audio.encoder(clips).pooler_output, expected)


@torch.no_grad()
def test_half_precision_weights_are_trained_in_full(text_folder: Path) -> None:
    BertModel.from_pretrained(text_folder).half().save_pretrained(text_folder)
    assert {parameter.dtype for parameter in built(text=text_folder).parameters()} == {torch.float32}


# ----- names of the hub -----


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache; the network may be asked, which the socket above refuses."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def put_in_cache(cache: Path, name: str, folder: Path, files: tuple[str, ...]) -> None:
    """As huggingface_hub lays its cache out: blobs, a snapshot of links to them, and the branch that names it."""
    place, commit = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (place / part).mkdir(parents=True, exist_ok=True)
    (place / "refs/main").write_text(commit)
    for file in files:
        content = (folder / file).read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (place / "snapshots" / commit / file).symlink_to(Path("../../blobs") / blob.name)


@torch.no_grad()
def test_a_name_is_found_in_the_local_cache(
    cache: Path, audio_folder: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, "acme/htsat", audio_folder, ("config.json", "model.safetensors"))
    put_in_cache(cache, "bert-tiny", text_folder, ("config.json", "model.safetensors", "tokenizer.json"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    clips = torch.randn(1, 1, 1001, 64)
    expected = built(audio=audio_folder).audio.encoder(clips).pooler_output
    larp = built(audio="acme/htsat", text="bert-tiny")
    assert torch.equal(larp.audio.encoder(clips).pooler_output, expected)
    assert larp.tokenizer.to_str() == built(text=text_folder).tokenizer.to_str()


def test_a_name_that_is_not_in_the_cache_whole_is_downloaded(
    cache: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, "acme/bert", text_folder, ("config.json",))
    asked: list[tuple[str, dict[str, Any]]] = []
    real = huggingface_hub.snapshot_download

    def download(name: str, **settings: Any) -> str:
        if settings.get("local_files_only"):
            return real(name, **settings)
        asked.append((name, settings))
        return str(text_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert built(text="acme/bert").text.encoder.config.hidden_size == 16
    files = ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "1_Pooling/config.json"]
    assert asked == [("acme/bert", {"allow_patterns": files})]


def test_what_the_hub_cannot_give_is_said_in_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what_to_do = r"download it elsewhere with `hf download acme/none --local-dir DIR` and give DIR$"

    def fail(name: str, **settings: Any) -> str:
        if settings.get("local_files_only"):
            raise FileNotFoundError
        raise ZeroDivisionError("the proxy says no.\nAnd much more besides.")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(CheckpointError, match=r"to be had from there \(the proxy says no\): " + what_to_do):
            built(audio="acme/none")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError, match=r"\(HF_HUB_OFFLINE is set\): " + what_to_do):
            built(audio="acme/none")


def test_offline_is_the_users_choice_and_telemetry_is_off() -> None:
    code = (
        "import training.larp.hub, huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False True"


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
    saved = json.loads((tmp_path / "model/config.json").read_text())
    assert LarpConfig.from_json(saved["larp"]) == config
    assert str(tmp_path) not in json.dumps(saved)


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
