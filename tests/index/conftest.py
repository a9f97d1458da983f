"""Small towers and a small matcher, made and exported as the trainer makes them, with the torch modules beside them."""

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ClapAudioConfig, ClapAudioModel

from index.models.fields import FieldSet, FieldSpec
from index.tracks.track import Track

# On a busy machine an example may take any time; a failure prints what repeats it.
hypothesis.settings.register_profile("debut", deadline=None, print_blob=True)
hypothesis.settings.load_profile("debut")

DIMS = 32
MAX_TOKENS = 16
WORDS = ["the", "a", "track", "by", "on", "album", "der", "im", "mai", "abend", "nacht", "wald", "franz", "##en", ","]


class AudioTower(nn.Module):
    """HTS-AT, a few thousand weights of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ClapAudioModel(
            ClapAudioConfig(
                patch_embeds_hidden_size=4, hidden_size=32, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1]
            )
        )
        self.head = nn.Linear(32, DIMS)

    def forward(self, log_mel: Tensor) -> Tensor:
        pooled = self.encoder(input_features=log_mel).pooler_output
        return nn.functional.normalize(self.head(pooled), dim=-1)


class TextTower(nn.Module):
    """BERT, likewise."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=MAX_TOKENS, attn_implementation="eager",
        )  # fmt: skip
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, DIMS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return nn.functional.normalize(self.head(states[:, 0]), dim=-1)


class FieldTower(nn.Module):
    """A matcher that reads one categorical, one numeric and two dense fields."""

    def __init__(self, categories: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(categories, 8)
        self.head = nn.Linear(8 + 2 + 2 * 33, 12)

    def forward(self, categorical, numeric, numeric_known, dense, dense_known):  # type: ignore[no-untyped-def]
        parts = [self.embedding(categorical[:, 0]), numeric, numeric_known, dense.flatten(1), dense_known]
        return nn.functional.normalize(self.head(torch.cat(parts, dim=1)), dim=-1)


@dataclass
class Exported:
    """A folder of exported models and the torch modules they came from."""

    directory: Path
    modules: dict[str, nn.Module]
    extra: Any = None


def export(module: nn.Module, inputs: dict[str, Tensor], dynamic: Any, path: Path) -> None:
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), (), path, kwargs=inputs, input_names=list(inputs), output_names=["vector"],
                dynamic_shapes=dynamic, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def small_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return tokenizer


@pytest.fixture(scope="session")
def towers(tmp_path_factory) -> Exported:
    """The encoder/ folder of a release."""
    directory = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    modules = {"audio": AudioTower(), "text": TextTower(tokenizer.get_vocab_size())}
    export(modules["audio"], {"log_mel": torch.randn(1, 1, 1001, 64)}, None, directory / "audio.onnx")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=MAX_TOKENS)
    ids = torch.ones(2, 7, dtype=torch.int64)
    export(
        modules["text"],
        {"input_ids": ids, "attention_mask": ids.clone()},  # one tensor twice would become one input
        {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")},
        directory / "text.onnx",
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "format": 1, "dims": DIMS, "max_tokens": MAX_TOKENS, "pad_token_id": 0, "pad_token": "[PAD]",
        "clauses": ["title", "artist"], "audio_share": 0.5,
        "sample_rate": 48_000, "model_type_audio": "clap_audio_model",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return Exported(directory, modules, tokenizer)


@pytest.fixture(scope="session")
def small_matcher(tmp_path_factory) -> Exported:
    """The matcher/ folder of a release; `extra` holds its fields."""
    directory = tmp_path_factory.mktemp("matcher")
    torch.manual_seed(1)
    specs = (
        FieldSpec("artist", "categorical", "artist"),
        FieldSpec("born", "numeric", "born"),
        FieldSpec("audio", "dense", "audio"),
    )
    tracks = [Track(str(n), artist=f"artist {n % 3}", attributes={"born": 1800.0 + n}) for n in range(9)]
    fields = FieldSet.fit(specs, tracks, {"audio": np.zeros((9, 64), np.float32)})
    module = FieldTower(fields.sizes("categorical")[0])
    inputs = {
        name: torch.from_numpy(array)
        for name, array in fields.transform(tracks[:3], {"audio": np.zeros((3, 64), np.float32)}).items()
    }
    export(module, inputs, {name: {0: torch.export.Dim("batch")} for name in inputs}, directory / "matcher.onnx")
    (directory / "fields.json").write_text(fields.to_json(), encoding="utf-8")
    return Exported(directory, {"matcher": module}, fields)
