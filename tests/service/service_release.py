"""Publishes a small but real release of demo songs: random towers of the real architecture, exported to ONNX.

Run as a process of its own (`python service_release.py ROOT SEED ...`), so that torch stays out of the tests.
"""

import json
import os
import sys
import warnings
from pathlib import Path

# Whoever imports this may watch for torch: it is loaded in main alone.
DEMO = Path(__file__).resolve().parents[2] / "demo" / "data"
TRACKS = 40
LISTENERS = 48


def towers(folder: Path, captions: list[str], clips, seed: int) -> None:
    """Write encoder/: a tiny HTS-AT, a tiny BERT, a tokenizer of the captions; `clips` is f32 [n, 1001, 64].

    Random towers send everything in nearly one direction; the heads' biases take that direction out.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from torch import nn
    from transformers import BertConfig, BertModel, ClapAudioConfig, ClapAudioModel

    torch.manual_seed(seed)
    folder.mkdir()

    class Audio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = ClapAudioConfig(
                patch_embeds_hidden_size=16,
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 1, 2, 2],
                hidden_size=128,
                num_mel_bins=64,
                spec_size=256,
                enable_fusion=False,
            )
            self.tower, self.head = ClapAudioModel(config).eval(), nn.Linear(128, 256)
            with torch.no_grad():
                self.head.bias -= self.head(
                    self.tower(input_features=torch.from_numpy(clips)[:, None]).pooler_output
                ).mean(0)

        def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(self.head(self.tower(input_features=log_mel).pooler_output), dim=-1)

    class Text(nn.Module):
        def __init__(self, words: int) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=words,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            )
            self.tower, self.head = BertModel(config, add_pooling_layer=False), nn.Linear(32, 256)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.tower(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
            return nn.functional.normalize(self.head(hidden), dim=-1)

    words = sorted({word for text in captions for word in text.lower().split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _export(Audio(), (torch.zeros(1, 1, 1001, 64),), folder / "audio.onnx", ["log_mel"], None)
    batch, length = torch.export.Dim("b", min=1, max=64), torch.export.Dim("n", min=3, max=64)
    ids = torch.ones(2, 9, dtype=torch.int64)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    _export(Text(len(vocabulary)), (ids, ids), folder / "text.onnx", ["input_ids", "attention_mask"], shapes)
    config = {
        "format": 1,
        "dims": 256,
        "max_tokens": 64,
        "pad_token_id": 0,
        "pad_token": "[PAD]",
        "clauses": ["title", "artist"],
        "audio_share": 0.3,
        "sample_rate": 48000,
        "model_type_audio": "clap_audio_model",
    }
    (folder / "config.json").write_text(json.dumps(config))


def matcher(folder: Path, fields, inputs, seed: int) -> None:
    """Write matcher/: a random linear map of the fields' arrays to 128-d unit vectors."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    folder.mkdir()
    names = list(inputs)

    class Matcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.languages = nn.Embedding(64, 16)
            wide = {"categorical": 16 * inputs["categorical"].shape[1]}
            wide |= {n: inputs[n][0].size for n in names if n != "categorical"}
            self.out = nn.Linear(sum(wide.values()), 128)

        def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
            parts = [
                self.languages(array).flatten(1) if name == "categorical" else array.float().flatten(1)
                for name, array in zip(names, arrays, strict=True)
            ]
            return nn.functional.normalize(self.out(torch.cat(parts, 1)), dim=-1)

    examples = tuple(torch.from_numpy(inputs[name][:2].copy()) for name in names)
    batch = torch.export.Dim("b", min=1, max=4096)
    shapes = (tuple({0: batch} for _ in names),)
    _export(Matcher(), examples, folder / "matcher.onnx", names, shapes)
    (folder / "fields.json").write_text(fields.to_json())


def _export(module, example, path: Path, names: list[str], shapes) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            path,
            input_names=names,
            output_names=["vector"],
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def songs():
    """Return the demo songs that have audio: (track, path), at most TRACKS of them."""
    import pyarrow.parquet as pq

    from index.tracks.track import Track

    found = []
    for row in pq.read_table(DEMO / "tracks.parquet").to_pylist():
        path = DEMO / row["audio"]
        if path.is_file():
            names = ("track_id", "title", "artist", "album", "duration_s", "language")
            found.append((Track(**{name: row[name] for name in names}), path))
    return found[:TRACKS]


def main(root: Path, seed: int) -> None:
    """Publish the release with weights drawn from `seed` under `root`."""
    import numpy as np

    from index.audience.cat import write_audience
    from index.collection import PARTS, write_collection
    from index.models.caption import caption
    from index.models.encoder import Encoder
    from index.models.fields import FieldSet, FieldSpec
    from index.models.matcher import Matcher
    from index.release.release import publish
    from index.sound.audio import decode
    from index.sound.features import log_mel

    work = root / "work"
    work.mkdir(parents=True)
    pairs = songs()
    tracks = [track for track, _ in pairs]
    mels = [log_mel(decode(path).clips) for _, path in pairs]
    captions = [caption(track, ("title", "artist")) for track in tracks]
    towers(work / "encoder", captions, np.concatenate(mels[:8]), seed)
    encoder = Encoder.open(work / "encoder")
    embedded = [
        encoder.track(mel, caption(track, encoder.clauses), None) for track, mel in zip(tracks, mels, strict=True)
    ]
    vectors = {name: np.stack([getattr(v, name) for v in embedded]) for name in (*PARTS, "continuation")}
    dense = {"audio": vectors["audio"], "text": vectors["text"]}
    specs = [
        FieldSpec("language", "categorical", "language"),
        FieldSpec("audio", "dense", "audio"),
        FieldSpec("text", "dense", "text"),
    ]
    fields = FieldSet.fit(specs, tracks, dense)
    matcher(work / "matcher", fields, fields.transform(tracks, dense), seed)
    matching = Matcher.open(work / "matcher").vectors(tracks, dense)
    rng = np.random.default_rng(seed)
    heard = rng.random((LISTENERS, len(tracks))) < 0.2
    heard[:, -8:] = False  # the last eight are cold
    listener, row = np.nonzero(heard)

    def fill(folder: Path) -> None:
        (work / "encoder").rename(folder / "encoder")
        (work / "matcher").rename(folder / "matcher")
        write_collection(folder, tracks, heard.sum(0), vectors, matching)
        ids = [f"listener-{n}" for n in range(LISTENERS)]
        plays = rng.integers(1, 20, len(row)).astype(np.float32)
        write_audience(folder / "audience", ids, listener, row, plays, matching)

    publish(root / "releases", fill, facts={"dims": {"continuation": 256, "matching": 128}})
    work.rmdir()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for argument in sys.argv[2:]:
        main(Path(sys.argv[1]) / argument, int(argument))
