"""What encoders other than HTS-AT hear: the tensor that a checkpoint's own feature extractor makes of 10 s."""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoFeatureExtractor

from training.data.frontend import FrontEnd
from training.larp.hub import EXTRACTOR, CheckpointError


class Extractor:
    """A feature extractor of transformers. `settings`: what preprocessor_config.json says, as JSON."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor
        self.settings: dict[str, Any] = json.loads(extractor.to_json_string())
        self.front_end = FrontEnd("pcm", int(extractor.sampling_rate))
        self.input_name: str = extractor.model_input_names[0]
        self.heard = self._heard()

    @classmethod
    def read(cls, folder: Path) -> "Extractor":
        """Read preprocessor_config.json. Raises CheckpointError."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="At least one mel filter")  # published AST has such
                found = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                return cls(found)
        except (ValueError, TypeError, AttributeError, KeyError, ImportError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{folder}/{EXTRACTOR} gives no feature extractor of sound: {reason}") from error

    @classmethod
    def rebuilt(cls, settings: Mapping[str, Any]) -> "Extractor":
        """Inverse of `settings`. Raises CheckpointError."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / EXTRACTOR).write_text(json.dumps(dict(settings)), "utf-8")
            return cls.read(Path(folder))

    def __call__(self, clips: NDArray[np.float32]) -> Tensor:
        """Samples f32 [B, 10 * rate] in [-1, 1] -> the encoder's input, f32 [B, ...]."""
        return torch.from_numpy(np.asarray(self._extracted(clips)[self.input_name], np.float32))

    def mean(self, states: Tensor) -> Tensor:
        """Mean over time of an encoder's states f32 [B, T, width]: of the 10 s, not of the silence that some extractors
        (Whisper's: to 30 s) put behind them.
        """
        return states[:, : max(1, round(self.heard * states.shape[1]))].mean(1)

    def _extracted(self, clips: NDArray[np.float32], **settings: Any) -> Mapping[str, Any]:
        rate = self.front_end.rate
        with torch.autocast("cpu", enabled=False):  # Whisper's computes with torch
            found: Mapping[str, Any] = self._extractor(list(clips), sampling_rate=rate, return_tensors="np", **settings)
        return found

    def _heard(self) -> float:
        """The share of the input that 10 s fill, by the mask that the extractor would give with it."""
        clip = np.zeros((1, self.front_end.clip_rows), np.float32)
        mask = self._extracted(clip, return_attention_mask=True).get("attention_mask")
        return 1.0 if mask is None else float(np.asarray(mask).mean())
