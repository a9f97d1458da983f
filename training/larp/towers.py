"""Builds the towers: from scratch in the config's sizes, or from local checkpoints that must match."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers: weights come from local directories only
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    ClapAudioConfig,
    ClapAudioModel,
    ClapAudioModelWithProjection,
)
from transformers.utils import logging as transformers_logging

from index.errors import DebutError
from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.model import AudioTower, Larp, TextTower
from training.larp.vocabulary import PAD, SPECIAL, fit_to_batches, train_vocabulary

# Parts of published checkpoints that are no part of a tower: pre-training heads, CLAP's other half, poolers.
_BESIDE_AUDIO = ("text_model.", "text_projection.", "audio_projection.", "logit_scale")
_BESIDE_TEXT = ("cls.", "pooler.", "lm_head.", "qa_outputs.", "classifier.")


class CheckpointError(DebutError):
    """A checkpoint that is not there, cannot be read, or does not match the model."""

    code = "checkpoint_unusable"


def build_larp(config: LarpConfig, captions: Sequence[str]) -> Larp:
    """Build an untrained model; `captions` of the training tracks teach a text tower from scratch its word
    pieces.

    Weights come from torch's global generator. Raises CheckpointError.
    """
    audio = _load_audio(config.audio) if config.audio.checkpoint else _fresh_audio(config.audio)
    if config.text.checkpoint:
        text, tokenizer = _load_text(config.text)
    else:
        tokenizer = train_vocabulary(captions, config.text.vocabulary)
        text = _fresh_text(config.text, tokenizer.get_vocab_size())
    return assemble(config, audio, text, tokenizer)


def rebuild_larp(config: LarpConfig, audio: dict[str, Any], text: dict[str, Any], tokenizer: Tokenizer) -> Larp:
    """Build the model around saved `encoder_configs`; its weights are to be loaded."""
    audio_config = ClapAudioConfig.from_dict(audio)
    text_config = AutoConfig.for_model(**text)
    return assemble(
        config, ClapAudioModel(audio_config), _without_pooler(AutoModel.from_config(text_config)), tokenizer
    )


def encoder_configs(larp: Larp) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoders' transformers configurations as JSON, audio and text."""
    return larp.audio.encoder.config.to_diff_dict(), larp.text.encoder.config.to_diff_dict()


def assemble(config: LarpConfig, audio: nn.Module, text: nn.Module, tokenizer: Tokenizer) -> Larp:
    """Put heads on the encoders and fit the tokenizer to them."""
    max_tokens = min(config.text.max_tokens, text.config.max_position_embeddings)
    pad_id = text.config.pad_token_id or 0
    fit_to_batches(tokenizer, max_tokens, tokenizer.id_to_token(pad_id) or PAD, pad_id)
    larp = Larp(
        AudioTower(audio, config.dims),
        TextTower(text, config.dims),
        tokenizer,
        max_tokens=max_tokens,
        clauses=config.clauses,
        temperature=config.temperature,
    )
    if config.audio_share is not None:
        larp.audio_share.fill_(config.audio_share)
    return larp


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises CheckpointError."""
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error


def _fresh_audio(config: AudioTowerConfig) -> nn.Module:
    return ClapAudioModel(
        ClapAudioConfig(
            window_size=config.window,
            patch_size=config.patch,
            patch_stride=[config.patch, config.patch],
            patch_embeds_hidden_size=config.width,
            hidden_size=config.width * 2 ** (len(config.depths) - 1),
            depths=list(config.depths),
            num_attention_heads=list(config.heads),
            num_hidden_layers=len(config.depths),
            hidden_dropout_prob=config.dropout,
        )
    )


def _fresh_text(config: TextTowerConfig, vocabulary: int) -> nn.Module:
    sizes = BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=config.max_tokens,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=SPECIAL.index(PAD),
    )
    return BertModel(sizes, add_pooling_layer=False)


def _load_audio(config: AudioTowerConfig) -> nn.Module:
    folder = _folder(config.checkpoint)
    whole = _config_of(folder)
    if whole.model_type not in ("clap", "clap_audio_model"):
        raise CheckpointError(f"{folder} is a {whole.model_type!r} model; the audio tower wants CLAP's HTS-AT")
    if whole.model_type == "clap":
        projected, found = _load(ClapAudioModelWithProjection, folder, config=whole.audio_config)
        model: nn.Module = projected.audio_model
    else:
        model, found = _load(ClapAudioModel, folder)
    _insist(folder, found, _BESIDE_AUDIO)
    if model.config.enable_fusion:
        raise CheckpointError(f"{folder} is a fusion checkpoint; use an unfused one (laion/clap-htsat-unfused)")
    return model


def _load_text(config: TextTowerConfig) -> tuple[nn.Module, Tokenizer]:
    folder = _folder(config.checkpoint)
    model, found = _load(AutoModel, folder)
    _insist(folder, found, _BESIDE_TEXT)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json; save its fast tokenizer there")
    return _without_pooler(model), read_tokenizer(path)


def _folder(checkpoint: str | None) -> Path:
    folder = Path(checkpoint or "")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; a checkpoint is a local directory with config and weights")
    return folder


def _config_of(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {error}") from error


def _load(kind: Any, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the keys is replaced by `_insist`
    try:
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _insist(folder: Path, found: dict[str, Any], beside: tuple[str, ...]) -> None:
    """Raise CheckpointError unless the file held every weight of the tower and no others."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key if isinstance(key, str) else key[0] for key in found[kind])
        keys = [key for key in keys if not key.removeprefix("bert.").startswith(beside)]
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(keys[:5])}{more}")
    if problems:
        raise CheckpointError(f"{folder} does not match its model; {'; '.join(problems)}")


def _without_pooler(model: nn.Module) -> nn.Module:
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # [CLS] is used as it is
    return model
