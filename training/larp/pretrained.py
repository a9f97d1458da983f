"""Loads encoders from checkpoints that must match their models, weight by weight."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, ClapAudioModel, ClapAudioModelWithProjection
from transformers.utils import logging as transformers_logging

from training.data.frontend import LOG_MEL, FrontEnd
from training.larp.extractor import Extractor
from training.larp.hub import CONFIG, EXTRACTOR, POOLING, TOKENIZER, CheckpointError, checkpoint_folder

# Parts of published checkpoints that are no part of a tower: pre-training heads, CLAP's other half, poolers.
_BESIDE_CLAP = ("text_model.", "text_projection.", "audio_projection.", "logit_scale")
_BESIDE_TEXT = (
    *("cls.", "pooler.", "lm_head.", "qa_outputs.", "classifier.", "pre_classifier.", "vocab_", "head.", "decoder."),
    *("predictions.", "sop_classifier.", "discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
    *("lm_predictions.", "mask_predictions."),
)
_BESIDE_SPEECH = ("classifier.", "projector.", "lm_head.", "proj_out.", "quantizer.", "project_", "label_embs_concat")
_UNUSED = ("masked_spec_embed",)  # of wav2vec's own masking, which `unmasked` turns off
_DERIVED = ("position_ids", "token_type_ids", "relative_position_index", "inv_freq")  # buffers, computed from the sizes
_CLAP = ("clap", "clap_audio_model")


def load_audio(checkpoint: str) -> tuple[nn.Module, Extractor | None]:
    """Load an audio encoder, and the feature extractor it hears through: None for HTS-AT, which reads log-mel.

    checkpoint: as `hub.checkpoint_folder` takes it; of an encoder-decoder model the encoder is used. Raises
    CheckpointError.
    """
    folder = checkpoint_folder(checkpoint)
    config = _config_of(folder)
    if config.model_type in _CLAP:
        return _load_htsat(folder, config), None
    extractor = Extractor.read(checkpoint_folder(checkpoint, EXTRACTOR))
    model, found = _load(AutoModel, folder)
    _insist(folder, found, _BESIDE_SPEECH, model.base_model_prefix)
    return encoder_of(model), extractor


def audio_front_end(checkpoint: str) -> FrontEnd:
    """What an audio checkpoint's encoder hears; no weights are read. Raises CheckpointError."""
    if _config_of(checkpoint_folder(checkpoint)).model_type in _CLAP:
        return LOG_MEL
    return Extractor.read(checkpoint_folder(checkpoint, EXTRACTOR)).front_end


def load_text(checkpoint: str, pooling: str = "auto") -> tuple[nn.Module, Tokenizer, str]:
    """Load a text encoder, its fast tokenizer, and how it is pooled: as `pooling` says, "auto" is what
    sentence-transformers noted beside it. checkpoint: as `hub.checkpoint_folder` takes it. Raises CheckpointError.
    """
    folder = checkpoint_folder(checkpoint, TOKENIZER)
    if (config := _config_of(folder)).is_encoder_decoder:
        raise CheckpointError(
            f"{checkpoint} is a {config.model_type!r} model with a decoder; take an encoder like BERT"
        )
    model, found = _load(AutoModel, folder)
    _insist(folder, found, _BESIDE_TEXT, model.base_model_prefix)
    if pooling == "auto":
        pooling = _noted_pooling(folder / POOLING)
    return without_pooler(model), read_tokenizer(folder / TOKENIZER), pooling


def _noted_pooling(path: Path) -> str:
    """How a sentence encoder was trained to pool, "cls" or "mean"; "cls" where nothing is noted."""
    if not path.is_file():
        return "cls"
    try:
        note = json.loads(path.read_text("utf-8"))
        chosen = [name for name in ("cls", "mean") if note[f"pooling_mode_{name}_token{'s' * (name == 'mean')}"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{path} cannot be read ({error!r}): set pooling to "cls" or "mean"') from error
    if len(chosen) != 1:
        raise CheckpointError(f'{path} asks for neither "cls" nor "mean" alone: set pooling to one of them')
    return chosen[0]


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises CheckpointError."""
    try:
        return Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder of a speech model, its own random masking (by NumPy's global generator) turned off."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if hasattr(model.config, "apply_spec_augment"):
        model.config.apply_spec_augment = False
    return model


def without_pooler(model: nn.Module) -> nn.Module:
    """Return a text model without the layer after [CLS], whose state is used as it is."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _load_htsat(folder: Path, config: Any) -> nn.Module:
    if config.model_type == "clap":
        projected, found = _load(ClapAudioModelWithProjection, folder, config=config.audio_config)
        model: nn.Module = projected.audio_model
    else:
        model, found = _load(ClapAudioModel, folder)
    _insist(folder, found, _BESIDE_CLAP)
    if model.config.enable_fusion:
        raise CheckpointError(f"{folder} is a fusion checkpoint; use an unfused one (laion/clap-htsat-unfused)")
    return model


def _config_of(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}/{CONFIG} cannot be used: {error}") from error


def _load(kind: Any, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    if kind is AutoModel:
        settings["trust_remote_code"] = False
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of the keys is replaced by `_insist`
    try:
        return kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,  # whatever it was saved in: training's precision is autocast's business
            **settings,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _insist(folder: Path, found: dict[str, Any], beside: tuple[str, ...], prefix: str = "") -> None:
    """Raise CheckpointError unless the file held every weight of the tower and no others."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(key if isinstance(key, str) else key[0] for key in found[kind])
        keys = [key for key in keys if not key.removeprefix(f"{prefix}.").startswith(beside)]
        if kind != "mismatched_keys":
            keys = [key for key in keys if not key.endswith(_DERIVED + _UNUSED)]
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(keys[:5])}{more}")
    if problems:
        raise CheckpointError(f"{folder} does not match its model; {'; '.join(problems)}")
