"""Writes the towers as the encoder/ folder of a release: ONNX graphs, tokenizer, and what to feed them."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from index.features import FRAMES, MELS, SAMPLE_RATE
from training.larp.model import Larp
from training.onnx_export import export_onnx

FORMAT = 1


def export_towers(larp: Larp, directory: Path) -> None:
    """Write audio.onnx, text.onnx, tokenizer.json and config.json into `directory`, the config last.

    audio.onnx: log_mel f32 [1, 1, 1001, 64] -> vector f32 [1, dims]. text.onnx: input_ids and attention_mask
    i64 [b, n] -> vector f32 [b, dims]. Vectors have length 1.
    """
    directory.mkdir(parents=True, exist_ok=True)
    larp = larp.eval()
    export_onnx(larp.audio, {"log_mel": torch.randn(1, 1, FRAMES, MELS)}, None, directory / "audio.onnx")
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=larp.max_tokens)
    ids, mask = larp.tokens(["a caption to trace", "another"])
    export_onnx(
        larp.text,
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}},
        directory / "text.onnx",
    )
    _write(directory / "tokenizer.json", larp.tokenizer.to_str(pretty=False))
    _write(directory / "config.json", json.dumps(_config(larp), indent=2) + "\n")


def _config(larp: Larp) -> dict[str, Any]:
    padding = larp.tokenizer.padding
    return {
        "format": FORMAT,
        "dims": larp.dims,
        "max_tokens": larp.max_tokens,
        "pad_token": padding["pad_token"],
        "pad_token_id": padding["pad_id"],
        "clauses": list(larp.clauses),
        "audio_share": round(larp.audio_share.item(), 6),
        "sample_rate": SAMPLE_RATE,
        "model_type_audio": larp.audio.encoder.config.model_type,
        "model_type_text": larp.text.encoder.config.model_type,
    }


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
