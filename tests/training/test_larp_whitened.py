"""Whitened heads and heads of fields: fitted as they say, trained, resumed, saved and exported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from larp_small import STEADY, TINY, stages_of
from tokenizers import Tokenizer, processors
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from index.models.encoder import Encoder, EncoderError
from index.tracks.track import Track
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.checkpoint import load_larp
from training.larp.config import LarpConfig, TextTowerConfig
from training.larp.content import LiveContent, encode
from training.larp.export import export_towers
from training.larp.heads import RIDGE, FieldsHead, Head, spread
from training.larp.task import LarpTask
from training.larp.towers import CheckpointError, build_larp
from training.larp.training import Run, Trainer, made_from, train_larp
from training.larp.vocabulary import train_vocabulary
from training.progress import Silent

CAPTIONS = ["The track Nacht by Clara", "The track Morgen by Robert", "Der Abend", "The track Der Morgen by Clara"]
SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
WHITENED = replace(STEADY, heads="whitened", positives="sum", towers=("text",))
FIELDS = replace(WHITENED, freeze=True, caption="fields", fixed_temperature=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "bert/tokenizer.json"))
    return tmp_path / "bert"


def config_of(folder: Path, pooling: str = "auto", **settings: Any) -> LarpConfig:
    return replace(WHITENED, text=TextTowerConfig(str(folder), pooling=pooling), dims=8, **settings)


# ----- whitening -----


def head_and_sample(dims: int, whitened: bool = True) -> tuple[Head, torch.Tensor]:
    torch.manual_seed(3)
    mixed = torch.randn(200, 6) @ torch.randn(6, 6) * torch.linspace(0.1, 3, 6) + 5
    head = Head(6, dims, whitened=whitened)
    spread(head, mixed)
    return head, mixed


def numpy_whitened(sample: np.ndarray, vectors: np.ndarray, kept: int) -> np.ndarray:
    """Cosines of `vectors` after ridge whitening by the strongest components of `sample`, float64."""
    mean, covariance = sample.mean(0), np.cov(sample.T, bias=True)
    values, directions = np.linalg.eigh(covariance)
    weights = directions[:, -kept:] / np.sqrt(values[-kept:] + RIDGE * values.mean())
    found = (vectors - mean) @ weights
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found @ found.T


@pytest.mark.parametrize("dims", [4, 6, 9])
def test_a_spread_head_whitens(dims: int) -> None:
    head, mixed = head_and_sample(dims)
    found = head(mixed).double().numpy()
    expected = numpy_whitened(mixed.double().numpy(), mixed.double().numpy(), min(dims, 6))
    assert np.abs(found @ found.T - expected).max() < 1e-4
    assert not any(p.requires_grad for p in head.parameters())


# ----- fields -----


def fields_head(seed: int, whitened: bool = True) -> tuple[FieldsHead, torch.Tensor]:
    torch.manual_seed(seed)
    pooled = torch.randn(200, 3, 6) @ torch.randn(6, 6) * torch.linspace(0.1, 3, 6) + 5
    pooled[::4, 1] = 0  # no artist
    pooled[1::7, 2] = 0  # no album
    head = FieldsHead(6, 18, 3, whitened=whitened)
    spread(head, pooled.flatten(1))
    return head, pooled


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_cosine_is_the_weighted_mean_of_the_fields_cosines(seed: int) -> None:
    head, pooled = fields_head(seed)
    head.log_weights.copy_(torch.tensor([-0.5, 0.3, 0.1]))
    found = head(pooled.flatten(1)).double().numpy()
    values, there = pooled.double().numpy(), (pooled != 0).any(-1).double().numpy()
    squares = np.exp(2 * head.log_weights.double().numpy())  # a weight stands in both vectors
    expected = np.zeros((200, 200))
    for field in range(3):
        known = there[:, field] > 0
        cosines = np.zeros((200, 200))
        cosines[np.ix_(known, known)] = numpy_whitened(values[known, field], values[known, field], 6)
        expected += squares[field] * cosines
    norms = np.sqrt(there @ squares)
    assert np.abs(found @ found.T - expected / np.outer(norms, norms)).max() < 1e-4, f"seed {seed}"


def test_only_the_weights_of_a_whitened_head_of_fields_learn() -> None:
    head, pooled = fields_head(0)
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {"log_weights"}
    assert torch.equal(head.log_weights, torch.zeros(3))
    vectors = head(pooled.flatten(1))
    (vectors[0] @ vectors[1]).backward()
    assert head.log_weights.grad.abs().max() > 0


@torch.no_grad()
def test_a_field_that_nobody_has_leaves_no_trace() -> None:
    torch.manual_seed(0)
    pooled = torch.randn(20, 2, 6)
    pooled[:, 1] = 0
    head = FieldsHead(6, 8, 2, whitened=True)
    spread(head, pooled.flatten(1))
    assert torch.equal(head(pooled.flatten(1))[:, 4:], torch.zeros(20, 4))
    assert torch.isfinite(head(torch.zeros(1, 12))).all()


@torch.no_grad()
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_field_that_is_the_same_everywhere_is_left_as_it_was(noise: float) -> None:
    """A catalogue of one artist: there is no variance to whiten by, and rounding must not be blown up to one."""
    torch.manual_seed(0)
    pooled = torch.randn(50, 2, 6)
    pooled[:, 1] = torch.randn(6) + noise * torch.randn(50, 6)
    head = FieldsHead(6, 12, 2, whitened=True)
    before = head.heads[1].weight.clone()
    spread(head, pooled.flatten(1))
    assert torch.equal(head.heads[1].weight, before)
    found = head(pooled.flatten(1)).double().numpy()
    titles = numpy_whitened(pooled[:, 0].double().numpy(), pooled[:, 0].double().numpy(), 6)
    assert np.abs(found @ found.T - (titles + 1) / 2).max() < 1e-4  # one artist: a cosine of 1
    another = head(torch.cat([pooled[0, 0], torch.randn(6)])[None]).double().numpy()
    assert (found[0] @ another[0]) < 0.99


@torch.no_grad()
def test_each_field_is_encoded_as_if_alone(folder: Path) -> None:
    larp = build_larp(config_of(folder, caption="fields", clauses=("title", "artist")), CAPTIONS).eval()
    texts = ["Nacht\nClara Schumann und Robert", "\nRobert", "Der Morgen"]  # the last one has no second line
    ids, mask = larp.tokens(texts)
    assert ids.shape == mask.shape == (3, 2, ids.shape[2])
    found = larp.text.pooled(ids, mask).view(3, 2, 16)
    bert = BertModel.from_pretrained(folder).eval()
    for row, fields in enumerate((("Nacht", "Clara Schumann und Robert"), ("", "Robert"), ("Der Morgen", ""))):
        for field, text in enumerate(fields):
            alone = torch.tensor([larp.tokenizer.encode(text).ids])
            expected = bert(input_ids=alone).last_hidden_state[0, 0] if text else torch.zeros(16)
            assert torch.allclose(found[row, field], expected, atol=1e-5), (row, field)
    with pytest.raises(ValueError, match="3 lines, for 2 fields"):
        larp.tokens(["a\nb\nc"])


# ----- checkpoints -----


def test_pooling_is_what_the_sentence_encoder_says(folder: Path) -> None:
    assert build_larp(config_of(folder), CAPTIONS).text.pooling == "cls"
    (folder / "1_Pooling").mkdir()
    note = folder / "1_Pooling/config.json"
    for cls, mean in ((True, False), (False, True)):
        note.write_text(json.dumps({"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": mean}))
        assert build_larp(config_of(folder), CAPTIONS).text.pooling == ("cls" if cls else "mean")
    assert build_larp(config_of(folder, pooling="cls"), CAPTIONS).text.pooling == "cls"
    for damaged in ('{"pooling_mode_max_tokens": true}', "[", json.dumps({"pooling_mode_cls_token": False})):
        note.write_text(damaged)
        with pytest.raises(CheckpointError, match=r'1_Pooling/config.json .*"cls" or "mean"'):
            build_larp(config_of(folder), CAPTIONS)
    note.write_text(json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}))
    with pytest.raises(CheckpointError, match="neither"):
        build_larp(config_of(folder), CAPTIONS)


def test_checkpoints_of_one_name_are_told_apart(dataset: DataSet, folder: Path, tmp_path: Path) -> None:
    other, same = tmp_path / "other/bert", tmp_path / "same/bert"
    for copy in (other, same):
        shutil.copytree(folder, copy)
    torch.manual_seed(2)
    BertModel(BertConfig(**SIZES)).save_pretrained(other)
    facts = [made_from(dataset, None, config_of(path)) for path in (folder, same, other)]
    assert facts[0] == facts[1]
    assert {name for name in facts[0] if facts[0][name] != facts[2][name]} == {"text checkpoint"}


# ----- training -----


def one_stage(config: LarpConfig, epochs: int = 2) -> LarpConfig:
    return stages_of(config, epochs, 2)


def trainer_of(dataset: DataSet, clips: ClipCache, config: LarpConfig, tmp_path: Path) -> Trainer:
    torch.manual_seed(0)
    return Trainer(dataset, clips, Run(tmp_path / "larp", features=tmp_path / "features"), config, Silent())


@pytest.mark.parametrize("changes", [{}, {"freeze": True}, {"caption": "fields"}], ids=["tuned", "frozen", "fields"])
def test_whitened_heads_stay(dataset: DataSet, clips: ClipCache, tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = trainer_of(dataset, clips, one_stage(replace(WHITENED, **changes)), tmp_path)
    before = {name: value.clone() for name, value in trainer.pretraining.state_dict().items()}
    trainer.train()
    after = trainer.pretraining.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.endswith(("head.weight", "head.bias")) or ".head.heads." in name for name in changed)
    assert any(".encoder." in name for name in changed) != ("freeze" in changes)
    assert ("online.text.head.log_weights" in changed) == ("caption" in changes)
    assert "online.temperature" in changed


@pytest.mark.parametrize("base", [WHITENED, FIELDS], ids=["tuned", "fields"])
def test_a_training_broken_off_ends_as_if_it_had_not_been(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: LarpConfig
) -> None:
    config, follow = one_stage(base), LarpTask.after_step
    expected = train_larp(dataset, clips, Run(tmp_path / "whole", features=tmp_path / "features"), config, Silent())
    for dies_after in (3, 4):
        done = [0]

        def after_step(task: LarpTask, done: list[int] = done, last: int = dies_after) -> None:
            if done[0] == last:
                raise KeyboardInterrupt
            done[0] += 1
            follow(task)

        monkeypatch.setattr(LarpTask, "after_step", after_step)
        run = Run(tmp_path / "broken", tmp_path / "saves", tmp_path / "features", save_every_s=0.0)
        with pytest.raises(KeyboardInterrupt):
            train_larp(dataset, clips, run, config, Silent())
    monkeypatch.setattr(LarpTask, "after_step", follow)
    assert train_larp(dataset, clips, run, config, Silent()) == expected
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("base", [WHITENED, FIELDS], ids=["tuned", "fields"])
def test_a_small_micro_batch_gives_the_same_vectors(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, base: LarpConfig
) -> None:
    vectors, texts = [], ["Nacht\nClara", "Der Morgen\nRobert"]  # a sentence's words or two fields
    for micro in (0, 3):
        config = one_stage(replace(base, micro_batch=micro), 1)
        train_larp(dataset, clips, Run(tmp_path / str(micro), features=tmp_path / "features"), config, Silent())
        vectors.append(load_larp(tmp_path / str(micro)).encode_text(texts))
    untrained = trainer_of(dataset, clips, config, tmp_path).larp.eval().encode_text(texts)
    learnt = (vectors[0] - untrained).norm()
    assert learnt > 1e-3
    assert (vectors[0] - vectors[1]).norm() < 0.02 * learnt


@pytest.mark.parametrize("caption", ["sentence", "fields"])
def test_the_service_computes_the_trainers_vectors(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, caption: str
) -> None:
    text = replace(TINY.text, pooling="mean")
    config = one_stage(replace(TINY, heads="whitened", towers=("text",), text=text, caption=caption), 1)
    train_larp(dataset, clips, Run(tmp_path / "larp"), config, Silent())
    larp = load_larp(tmp_path / "larp")
    assert larp.text.pooling == "mean"
    export_towers(larp, tmp_path / "encoder")
    encoder = Encoder.open(tmp_path / "encoder")
    tracks = [*dataset.tracks[:5], Track("x", title="Nacht"), Track("y", artist="Clara"), Track("z", title="a " * 200)]
    captions = [encoder.caption(track) for track in tracks]
    assert (captions[5] == "Nacht\n") == (caption == "fields")
    found = encoder.text(captions)
    with torch.no_grad():
        expected = larp.encode_text(captions).numpy()
        batched = encode(larp, "text", LiveContent(dataset, None, config), np.arange(5))
    assert (found * expected).sum(1).min() > 0.9999
    assert (found[:5] * batched).sum(1).min() > 0.9999
    lyrics = "Fremd bin ich eingezogen,\nfremd zieh' ich wieder aus.\n\nDer Mai"
    words = encoder.track(None, captions[0], lyrics).lyrics
    assert words @ encoder.text([" ".join(lyrics.split())])[0] > 0.9999


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("specials", ["bert", "roberta", "none"])
@torch.no_grad()
def test_a_field_without_a_word_piece_is_missing(folder: Path, tmp_path: Path, specials: str, pooling: str) -> None:
    """A zero-width space is no white space to Python, and nothing to tokenizers: alone, in a batch, in the service."""
    if specials == "roberta":
        RobertaModel(RobertaConfig(**SIZES, pad_token_id=0)).save_pretrained(folder)
    if specials != "bert":
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        frame = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
        nothing = processors.TemplateProcessing(single="$A", special_tokens=[])
        tokenizer.post_processor = frame if specials == "roberta" else nothing
        tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = config_of(folder, pooling, caption="fields", clauses=("title", "artist"))
    larp = build_larp(config, CAPTIONS).eval()
    export_towers(larp, tmp_path / "encoder")
    encoder = Encoder.open(tmp_path / "encoder", threads=1)
    tracks = [
        Track("a", "Nacht"),
        Track("b", "\u200b", "Clara"),
        Track("c", "a " * 200, "Der Morgen"),
        Track("d", "\u200b"),
    ]
    captions = [encoder.caption(track) for track in tracks]
    expected = larp.encode_text(captions).numpy()
    assert not expected[3].any()
    assert np.abs(expected[1, :4]).max() == 0 < np.abs(expected[1, 4:]).min()
    for count in (1, 2, 33):
        for first in range(4):
            asked = (captions[first:] + captions * 10)[:count]
            assert np.abs(encoder.text(asked) - np.tile(expected, (12, 1))[first:][:count]).max() < 1e-5
            assert np.abs(larp.encode_text(asked).numpy() - np.tile(expected, (12, 1))[first:][:count]).max() < 1e-5
    with pytest.raises(EncoderError, match="no title"):
        encoder.track(None, captions[3], None)
    assert encoder.track(None, captions[0], "\u200b").lyrics is None


# ----- settings -----


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"caption": "fields", "dims": 31}, "dims 31 is no multiple of 2"),
        ({"fusion": "transformer", "dims": 30}, "dims 30 is no multiple of that"),
        ({"caption": "verse"}, "caption must be one of"),
        ({"freeze": True, "heads": "whitened", "fixed_temperature": True}, "nothing to train"),
        (
            {"freeze": True, "heads": "whitened", "fixed_temperature": True, "caption": "fields", "towers": ("audio",)},
            "nothing to train",
        ),
        ({"towers": ("text", "text")}, "each once"),
        ({"clauses": ("title", "title")}, "each once"),
        ({"heads": "whitened", "spread": False}, "cannot go without spread"),
        ({"heads": "frozen"}, "heads must be one of"),
        ({"positives": "max"}, "positives must be one of"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(TINY, **changes)
    with pytest.raises(ValueError, match="pooling must be one of"):
        TextTowerConfig(pooling="max")
