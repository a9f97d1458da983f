"""A small encoder and a small matcher as torch modules, and how they are exported."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ClapAudioConfig, ClapAudioModel

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
