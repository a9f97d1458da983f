"""A trained BCL on disk: safetensors, its configuration, its fields and a model card. Never a pickle."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from index.models.fields import FieldsError, FieldSet
from index.tracks.track import Track
from training.bcl.config import BclError, load_config
from training.bcl.model import Bcl
from training.folders import replace_folder


def save_bcl(model: Bcl, directory: Path, card: str) -> None:
    """Write model.safetensors, config.json, fields.json and README.md (`card`) as `directory`."""

    def fill(folder: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(model.config.to_json() + "\n", encoding="utf-8")
        (folder / "fields.json").write_text(model.fields.to_json() + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")

    replace_folder(directory, fill)


def load_bcl(directory: Path) -> Bcl:
    """Return the model saved in `directory`, on the CPU, in evaluation mode.

    Raises BclError (bcl_missing, bcl_failed) naming what is missing or does not fit.
    """
    config = load_config(directory)
    try:
        fields = FieldSet.from_json((directory / "fields.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "model.safetensors")
    except OSError as error:
        raise BclError(f"{directory} holds no whole BCL checkpoint: {error}", code="bcl_missing") from error
    except (SafetensorError, FieldsError) as error:
        raise BclError(f"the BCL checkpoint in {directory} is damaged ({error}): train again") from error
    with torch.random.fork_rng(devices=[]):
        model = Bcl(fields, config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise BclError(f"the weights in {directory} do not fit its config.json: {error}") from error
    return model.eval()


def bcl_vectors(
    model: Bcl, tracks: Sequence[Track], vectors: Mapping[str, NDArray[np.float32]], batch: int = 8192
) -> NDArray[np.float32]:
    """Return the matching vectors f32 [N, dims + content_dims] of `tracks`; `vectors` as in `train_bcl`."""
    model.eval()
    parts = [np.empty((0, model.config.dims + model.config.content_dims), np.float32)]
    with torch.no_grad():
        for start in range(0, len(tracks), batch):
            part = slice(start, start + batch)
            inputs = model.fields.transform(tracks[part], {name: rows[part] for name, rows in vectors.items()})
            parts.append(model.matching({name: torch.from_numpy(array) for name, array in inputs.items()}).numpy())
    return np.concatenate(parts)
