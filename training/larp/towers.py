"""Builds the towers: from scratch in the config's sizes, from checkpoints, or around what a LARP checkpoint says."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, ClapAudioConfig, ClapAudioModel

from index.errors import DebutError
from training.data.frontend import LOG_MEL, FrontEnd
from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.extractor import Extractor
from training.larp.hub import CheckpointError
from training.larp.model import AudioTower, Larp, TextTower
from training.larp.pretrained import (
    audio_front_end,
    encoder_of,
    load_audio,
    load_text,
    read_tokenizer,
    without_pooler,
)
from training.larp.vocabulary import PAD, SPECIAL, fit_to_batches, train_vocabulary

__all__ = [
    "CheckpointError",
    "FrontEndError",
    "assemble",
    "build_larp",
    "check_servable",
    "encoder_configs",
    "front_end",
    "read_tokenizer",
    "rebuild_larp",
]

_EXTRACTOR = "feature_extractor"  # beside an audio encoder's own settings
_POOLING = "text_pooling"  # beside a text encoder's own settings: what "auto" was found to be


class FrontEndError(DebutError):
    """An audio tower that hears through a front end which the service does not have."""

    code = "front_end_unserved"


def build_larp(config: LarpConfig, captions: Sequence[str]) -> Larp:
    """Build an untrained model; `captions` of the training tracks teach a text tower from scratch its word
    pieces.

    Weights come from torch's global generator. Raises CheckpointError.
    """
    audio = text = tokenizer = extractor = None
    pooling = ""
    if "audio" in config.towers and config.audio.checkpoint:
        audio, extractor = load_audio(config.audio.checkpoint)
    elif "audio" in config.towers:
        audio = _fresh_audio(config.audio)
    if "text" in config.towers and config.text.checkpoint:
        text, tokenizer, pooling = load_text(config.text.checkpoint, config.text.pooling)
    elif "text" in config.towers:
        tokenizer = train_vocabulary(captions, config.text.vocabulary)
        text = _fresh_text(config.text, tokenizer.get_vocab_size())
    return assemble(config, audio, text, tokenizer, extractor, pooling)


def front_end(config: LarpConfig) -> FrontEnd:
    """What the clip cache must hold for the audio tower; no weights are read. Raises CheckpointError."""
    if "audio" not in config.towers or config.audio.checkpoint is None:
        return LOG_MEL
    return audio_front_end(config.audio.checkpoint)


def check_servable(larp: Larp) -> None:
    """Raise FrontEndError unless `index`, which knows CLAP's log-mel alone, can feed the audio tower."""
    if larp.audio is not None and larp.audio.extractor is not None:
        raise FrontEndError(
            f"a {larp.audio.encoder.config.model_type!r} audio tower can be trained and measured, but the service "
            "computes CLAP's log-mel alone: train with an HTS-AT checkpoint (laion/clap-htsat-unfused), or with none, "
            "for a release"
        )


def rebuild_larp(
    config: LarpConfig, audio: dict[str, Any] | None, text: dict[str, Any] | None, tokenizer: Tokenizer | None
) -> Larp:
    """Build the model around saved `encoder_configs`; its weights are to be loaded. Raises CheckpointError."""
    encoder, extractor = _rebuilt_audio(audio) if audio is not None else (None, None)
    reader = _rebuilt_text(text) if text is not None else None
    return assemble(config, encoder, reader, tokenizer, extractor, (text or {}).get(_POOLING, ""))


def encoder_configs(larp: Larp) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The encoders' transformers configurations as JSON, audio and text; None for a tower that is not there. An audio
    encoder's feature extractor stands in its own under "feature_extractor", how text is pooled under "text_pooling".
    """
    audio, text = larp.audio, larp.text
    heard = {_EXTRACTOR: audio.extractor.settings} if audio is not None and audio.extractor is not None else {}
    return (
        None if audio is None else _settings_of(audio.encoder) | heard,
        None if text is None else _settings_of(text.encoder) | {_POOLING: text.pooling},
    )


def assemble(
    config: LarpConfig,
    audio: nn.Module | None,
    text: nn.Module | None,
    tokenizer: Tokenizer | None,
    extractor: Extractor | None = None,
    pooling: str = "",
) -> Larp:
    """Put heads on the encoders and fit the tokenizer to them; `pooling`: what "auto" is for this text encoder, "" for
    "cls". Raises CheckpointError for an audio encoder that cannot read what the extractor makes.
    """
    max_tokens = config.text.max_tokens
    if text is not None and tokenizer is not None:
        max_tokens = min(max_tokens, _longest(text, max_tokens))
        pad_id = text.config.pad_token_id or 0
        fit_to_batches(tokenizer, max_tokens, tokenizer.id_to_token(pad_id) or PAD, pad_id)
    larp = Larp(
        None if audio is None else _audio_tower(audio, config, extractor),
        None if text is None or tokenizer is None else _text_tower(text, config, pooling, tokenizer),
        tokenizer,
        max_tokens=max_tokens,
        clauses=config.clauses,
        temperature=config.temperature,
    )
    if config.audio_share is not None:
        larp.audio_share.fill_(config.audio_share)
    return larp


def _longest(encoder: nn.Module, unlimited: int) -> int:
    """Most word pieces that a text encoder has positions for. RoBERTa and its kin count from behind the pad token's."""
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    positions = int(getattr(encoder.config, "max_position_embeddings", unlimited))
    return positions if padding is None else positions - padding - 1


def _text_tower(encoder: nn.Module, config: LarpConfig, found: str, tokenizer: Tokenizer) -> TextTower:
    return TextTower(
        encoder,
        config.dims,
        pooling=(found or "cls") if config.text.pooling == "auto" else config.text.pooling,
        whitened=config.heads == "whitened",
        fields=len(config.clauses) if config.caption == "fields" else 0,
        specials=tokenizer.num_special_tokens_to_add(is_pair=False),
    )


def _audio_tower(encoder: nn.Module, config: LarpConfig, extractor: Extractor | None) -> AudioTower:
    try:
        return AudioTower(
            encoder,
            config.dims,
            fixed_norm=config.audio.fixed_norm,
            extractor=extractor,
            whitened=config.heads == "whitened",
        )
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        kind, reason = encoder.config.model_type, str(error).strip().partition("\n")[0]
        raise CheckpointError(f"a {kind!r} model cannot be an audio tower: it does not encode 10 s ({reason})") from (
            error
        )


def _rebuilt_audio(settings: dict[str, Any]) -> tuple[nn.Module, Extractor | None]:
    own = {name: value for name, value in settings.items() if name != _EXTRACTOR}
    if _EXTRACTOR not in settings:
        return ClapAudioModel(ClapAudioConfig.from_dict(own)), None
    model = AutoModel.from_config(AutoConfig.for_model(**own), trust_remote_code=False)
    return encoder_of(model), Extractor.rebuilt(settings[_EXTRACTOR])


def _rebuilt_text(settings: dict[str, Any]) -> nn.Module:
    own = {name: value for name, value in settings.items() if name != _POOLING}
    return without_pooler(AutoModel.from_config(AutoConfig.for_model(**own), trust_remote_code=False))


def _settings_of(encoder: nn.Module) -> dict[str, Any]:
    settings: dict[str, Any] = encoder.config.to_diff_dict()
    settings.pop("_name_or_path", None)  # a path of the machine it was made on
    return settings


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
