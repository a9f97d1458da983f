"""Writes the towers as the encoder/ folder of a release: ONNX graphs, tokenizer, and what to feed them."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from index.sound.features import FRAMES, MELS, SAMPLE_RATE
from training.larp.model import Larp, TextTower
from training.larp.towers import check_servable
from training.onnx_export import export_onnx

FORMAT = 1


def export_towers(larp: Larp, directory: Path) -> None:
    """Write audio.onnx, text.onnx, tokenizer.json (of the towers there are) and config.json into `directory`, the
    config last.

    audio.onnx: log_mel f32 [1, 1, 1001, 64] -> vector f32 [1, dims]. text.onnx: input_ids, attention_mask i64 [b, n],
    of a tower that reads fields [b, fields, n] -> vector f32 [b, dims]. Vectors have length 1. Raises FrontEndError for
    an audio tower that hears otherwise than the service.
    """
    check_servable(larp)
    directory.mkdir(parents=True, exist_ok=True)
    larp = larp.eval()
    if larp.audio is not None:
        export_onnx(larp.audio, {"log_mel": torch.randn(1, 1, FRAMES, MELS)}, None, directory / "audio.onnx")
    if larp.text is not None:
        _export_text(larp, larp.text, directory)
    _write(directory / "config.json", json.dumps(_config(larp), indent=2) + "\n")


def _export_text(larp: Larp, text: TextTower, directory: Path) -> None:
    assert larp.tokenizer is not None
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=larp.max_tokens)
    ids, mask = larp.tokens(["a caption to trace", "another"])
    export_onnx(
        text,
        {"input_ids": ids, "attention_mask": mask},
        {"input_ids": {0: batch, ids.ndim - 1: length}, "attention_mask": {0: batch, ids.ndim - 1: length}},
        directory / "text.onnx",
    )
    _write(directory / "tokenizer.json", larp.tokenizer.to_str(pretty=False))


def _config(larp: Larp) -> dict[str, Any]:
    padding = larp.tokenizer.padding if larp.tokenizer else {"pad_token": "", "pad_id": 0}
    return {
        "format": FORMAT,
        "dims": larp.dims,
        "max_tokens": larp.max_tokens,
        "pad_token": padding["pad_token"],
        "pad_token_id": padding["pad_id"],
        "clauses": list(larp.clauses),
        "caption": "fields" if larp.reads_fields else "sentence",
        "audio_share": round(larp.audio_share.item(), 6),
        "sample_rate": SAMPLE_RATE,
        "towers": list(larp.names),
    } | {f"model_type_{name}": larp.tower(name).encoder.config.model_type for name in larp.names}


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
