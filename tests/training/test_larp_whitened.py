"""Whitened heads, attention pooling and cut checkpoints: fitted as they say, trained, resumed, saved and exported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from larp_small import STEADY, TINY, stages_of
from torch.nn import functional as F
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from index.encoder import Encoder
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.larp.checkpoint import load_larp
from training.larp.config import LarpConfig, TextTowerConfig
from training.larp.export import export_towers
from training.larp.heads import MAX_GATE, RIDGE, Gate, Head, refit, spread
from training.larp.task import LarpTask
from training.larp.towers import CheckpointError, build_larp
from training.larp.training import Run, Trainer, train_larp
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
WHITENED = replace(STEADY, heads="whitened", positives="sum", refit_every=2, towers=("text",))
ATTENTION = replace(WHITENED, text=replace(WHITENED.text, pooling="attention", lr_scale=0.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "bert/tokenizer.json"))
    return tmp_path / "bert"


def config_of(folder: Path, **text: Any) -> LarpConfig:
    return replace(WHITENED, text=TextTowerConfig(str(folder), **text), dims=8)


# ----- whitening -----


def head_and_sample(dims: int, whitened: bool = True) -> tuple[Head, torch.Tensor]:
    torch.manual_seed(3)
    mixed = torch.randn(200, 6) @ torch.randn(6, 6) * torch.linspace(0.1, 3, 6) + 5
    head = Head(6, dims, whitened=whitened)
    spread(head, mixed)
    return head, mixed


@pytest.mark.parametrize("dims", [4, 6, 9])
def test_a_refit_to_the_same_outputs_changes_nothing(dims: int) -> None:
    head, mixed = head_and_sample(dims)
    before = head.weight.clone(), head.bias.clone()
    refit(head, mixed)
    assert torch.allclose(head.weight, before[0], atol=1e-5)
    assert torch.allclose(head.bias, before[1], atol=1e-4)
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_a_refit_whitens_and_keeps_the_orientation(seed: int) -> None:
    head, mixed = head_and_sample(6)
    rng = np.random.default_rng(seed)
    moved = mixed + torch.from_numpy(0.1 * rng.normal(size=mixed.shape)).float() @ torch.diag(torch.arange(6.0))
    before = head(moved)
    refit(head, moved)
    x = moved.double().numpy()
    covariance = np.cov(x.T, bias=True)
    ridged = covariance + RIDGE * np.trace(covariance) / 6 * np.eye(6)
    values, vectors = np.linalg.eigh(ridged)
    expected = head.basis.numpy() @ (vectors / np.sqrt(values)) @ vectors.T  # B C^-1/2
    assert np.allclose(head.weight.numpy(), expected, atol=1e-5), f"seed {seed}"
    projected = F.linear(moved, head.weight, head.bias)
    assert projected.mean(0).abs().max() < 1e-4
    assert (before * head(moved)).sum(1).min() > 0.9, f"seed {seed}"


# ----- the gate -----


def test_the_gate_starts_as_the_mean_and_then_weighs() -> None:
    torch.manual_seed(0)
    states, mask = torch.randn(3, 5, 4) * 2 + 1, torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    gate = Gate(4)
    gate.fit(states[mask.bool()])
    there = mask[..., None].float()
    assert torch.allclose(gate(states, mask), (states * there).sum(1) / there.sum(1))
    with torch.no_grad():
        gate.query.copy_(torch.tensor([1.0, -2.0, 30.0, 0.5]))
    for row, count in enumerate([5, 2, 4]):
        tokens = states[row, :count].double().numpy()
        known = states[mask.bool()].double().numpy()
        scores = (tokens - known.mean(0)) / known.std(0) @ gate.query.detach().double().numpy()
        weights = np.exp(np.clip(scores, -MAX_GATE, MAX_GATE))
        assert np.allclose(gate(states, mask)[row].detach().numpy(), weights @ tokens / weights.sum(), atol=1e-4)


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


@torch.no_grad()
def test_the_first_layers_are_kept(folder: Path) -> None:
    larp = build_larp(config_of(folder, keep_layers=2), CAPTIONS).eval()
    ids, mask = larp.tokens(CAPTIONS)
    whole = BertModel.from_pretrained(folder).eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert torch.allclose(larp.text.states(ids, mask), whole.hidden_states[2], atol=1e-6)
    assert larp.text.encoder.config.num_hidden_layers == 2
    with pytest.raises(CheckpointError, match="3 layers cannot be cut to 4: set keep_layers to 0"):
        build_larp(config_of(folder, keep_layers=4), CAPTIONS)


@torch.no_grad()
def test_relatives_are_cut_too(tmp_path: Path) -> None:
    model = DistilBertModel(DistilBertConfig(vocab_size=80, dim=16, n_layers=3, n_heads=2, hidden_dim=32))
    model.save_pretrained(tmp_path)
    train_vocabulary(CAPTIONS, 80).save(str(tmp_path / "tokenizer.json"))
    larp = build_larp(config_of(tmp_path, keep_layers=1), CAPTIONS).eval()
    ids, mask = larp.tokens(CAPTIONS)
    whole = model.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    assert torch.allclose(larp.text.states(ids, mask), whole.hidden_states[1], atol=1e-6)


# ----- training -----


def one_stage(config: LarpConfig, epochs: int = 2) -> LarpConfig:
    return stages_of(config, epochs, 2)


def trainer_of(dataset: DataSet, clips: ClipCache, config: LarpConfig, tmp_path: Path) -> Trainer:
    torch.manual_seed(0)
    return Trainer(dataset, clips, Run(tmp_path / "larp", features=tmp_path / "features"), config, Silent())


@pytest.mark.parametrize(
    "changes",
    [{}, {"freeze": True}, {"towers": ("audio", "text")}],
    ids=["text", "frozen", "both"],
)
def test_heads_are_the_whitening_of_their_own_encoders(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = one_stage(replace(WHITENED, **changes))
    trainer = trainer_of(dataset, clips, config, tmp_path)
    first = {name: trainer.larp.tower(name).head.weight.clone() for name in config.towers}
    trainer.train()
    pretraining = trainer.pretraining
    for name in config.towers:
        tower = trainer.larp.tower(name)
        twin = pretraining.twins[name]
        for module in (tower, twin):
            head = module if isinstance(module, Head) else module.head
            inputs = trainer.content.inputs(name, trainer.corpus.rows, trainer.larp)
            with torch.no_grad():
                pooled = inputs[0] if trainer.content.frozen else module.pooled(*inputs)
            expected = Head(head.in_features, head.out_features, whitened=True)
            expected.basis.copy_(tower.head.basis)
            refit(expected, pooled)
            assert torch.allclose(head.weight, expected.weight, atol=1e-3, rtol=1e-3)
        assert torch.allclose(tower.head.weight, first[name], rtol=1e-3, atol=1e-3) == config.freeze


def test_a_fixed_encoder_stays_and_its_gate_learns(dataset: DataSet, clips: ClipCache, tmp_path: Path) -> None:
    config = one_stage(replace(ATTENTION, fixed_temperature=True))
    trainer = trainer_of(dataset, clips, config, tmp_path)
    before = {name: value.clone() for name, value in trainer.pretraining.state_dict().items()}
    trainer.train()
    after = trainer.pretraining.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(".encoder." in name for name in changed)
    assert {"online.text.gate.query", "twins.text.gate.query", "online.text.head.weight"} <= changed
    assert "online.temperature" not in changed


def test_states_stand_for_the_word_pieces_of_a_fixed_encoder(
    dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    text = trainer_of(dataset, clips, ATTENTION, tmp_path).larp.train().text
    ids = torch.randint(text.encoder.config.vocab_size, (3, 7))
    mask = torch.ones_like(ids)
    assert torch.equal(text(text.states(ids, mask), mask), text(ids, mask))


@pytest.mark.parametrize("base", [WHITENED, ATTENTION], ids=["tuned", "attention"])
def test_a_training_broken_off_ends_as_if_it_had_not_been(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: LarpConfig
) -> None:
    config, follow = one_stage(base), LarpTask.after_step
    expected = train_larp(dataset, clips, Run(tmp_path / "whole"), config, Silent())
    for dies_after in (3, 4):
        done = [0]

        def after_step(task: LarpTask, done: list[int] = done, last: int = dies_after) -> None:
            if done[0] == last:
                raise KeyboardInterrupt
            done[0] += 1
            follow(task)

        monkeypatch.setattr(LarpTask, "after_step", after_step)
        run = Run(tmp_path / "broken", tmp_path / "saves", save_every_s=0.0)
        with pytest.raises(KeyboardInterrupt):
            train_larp(dataset, clips, run, config, Silent())
    monkeypatch.setattr(LarpTask, "after_step", follow)
    assert train_larp(dataset, clips, run, config, Silent()) == expected
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("base", [WHITENED, ATTENTION], ids=["tuned", "attention"])
def test_a_small_micro_batch_gives_the_same_vectors(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, base: LarpConfig
) -> None:
    vectors = []
    for micro in (0, 3):
        config = one_stage(replace(base, micro_batch=micro), 1)
        train_larp(dataset, clips, Run(tmp_path / str(micro)), config, Silent())
        vectors.append(load_larp(tmp_path / str(micro)).encode_text(CAPTIONS))
    untrained = trainer_of(dataset, clips, config, tmp_path).larp.eval().encode_text(CAPTIONS)
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.9999
    assert (vectors[0] * untrained).sum(1).min() < 0.9999


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_service_computes_the_trainers_vectors(
    dataset: DataSet, clips: ClipCache, tmp_path: Path, pooling: str
) -> None:
    config = one_stage(replace(TINY, heads="whitened", towers=("text",), text=replace(TINY.text, pooling=pooling)), 1)
    train_larp(dataset, clips, Run(tmp_path / "larp"), config, Silent())
    larp = load_larp(tmp_path / "larp")
    assert larp.text.pooling == pooling
    if larp.text.gate is not None:
        with torch.no_grad():
            larp.text.gate.query.normal_()  # as after longer training
    export_towers(larp, tmp_path / "encoder")
    found = Encoder.open(tmp_path / "encoder").text(CAPTIONS)
    with torch.no_grad():
        expected = larp.encode_text(CAPTIONS).numpy()
    assert (found * expected).sum(1).min() > 0.9999


# ----- settings -----


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"freeze": True, "text": TextTowerConfig(pooling="attention")}, "set the text's lr_scale to 0"),
        ({"freeze": True, "heads": "whitened", "fixed_temperature": True}, "nothing to train"),
        ({"heads": "whitened", "spread": False}, "cannot go without spread"),
        ({"heads": "frozen"}, "heads must be one of"),
        ({"positives": "max"}, "positives must be one of"),
        ({"refit_every": 0}, "refit_every must be at least 1"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(TINY, **changes)
    with pytest.raises(ValueError, match="without one, set layers"):
        TextTowerConfig(keep_layers=2)
    with pytest.raises(ValueError, match="pooling must be one of"):
        TextTowerConfig(pooling="max")
