"""LARP on disk: model.safetensors, config.json, tokenizer.json and a model card. Never a pickle."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.larp.config import LarpConfig
from training.larp.model import Larp
from training.larp.towers import CheckpointError, encoder_configs, read_tokenizer, rebuild_larp

FORMAT = 1


def save_larp(larp: Larp, config: LarpConfig, directory: Path, card: str) -> None:
    """Write the model into `directory`; each file appears whole or not at all, the weights last."""
    directory.mkdir(parents=True, exist_ok=True)
    audio, text = encoder_configs(larp)
    settings = {"format": FORMAT, "larp": config.to_json(), "audio": audio, "text": text}
    _write(directory / "config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if larp.tokenizer is not None:
        _write(directory / "tokenizer.json", larp.tokenizer.to_str(pretty=False))
    _write(directory / "README.md", card)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in larp.state_dict().items()}
    part = directory / "model.safetensors.part"
    save_file(weights, part)
    os.replace(part, directory / "model.safetensors")


def load_larp(directory: Path) -> Larp:
    """Read what `save_larp` wrote, in evaluation mode, on the CPU. Raises CheckpointError."""
    settings = _settings(directory)
    try:
        config = LarpConfig.from_json(settings["larp"])
        tokenizer = read_tokenizer(directory / "tokenizer.json") if settings["text"] else None
        larp = rebuild_larp(config, settings["audio"], settings["text"], tokenizer)
        larp.load_state_dict(load_file(directory / "model.safetensors"))
    except CheckpointError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    return larp.eval()


def _settings(directory: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} is no LARP checkpoint: {error}") from error
    if settings.get("format") != FORMAT:
        found = settings.get("format")
        raise CheckpointError(f"{directory} has checkpoint format {found}; this version reads {FORMAT}")
    return settings


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
