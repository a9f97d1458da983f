"""Small towers and a small matcher, made and exported as the trainer makes them, with the torch modules beside them."""

import json

import hypothesis
import numpy as np
import pytest
import torch
from index_towers import DIMS, MAX_TOKENS, AudioTower, Exported, FieldTower, TextTower, export, small_tokenizer

from index.models.fields import FieldSet, FieldSpec
from index.tracks.track import Track

# On a busy machine an example may take any time; a failure prints what repeats it.
hypothesis.settings.register_profile("debut", deadline=None, print_blob=True)
hypothesis.settings.load_profile("debut")


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
