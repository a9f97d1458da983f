"""python -m tests.golden: write the golden release of the format that this code writes, and what it answers.

Only when the format changes: raise index.release.release.FORMAT, run this, and commit the new folder. The folders of
older formats stay as long as Debut reads them, so that every run of the tests opens them, and go with the code that
reads them. While a format is not yet in anybody's hands, its folder may be written anew.
"""

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from index.audience.listening_file import write_audience
from index.collection import write_collection
from index.models.caption import caption
from index.models.encoder import Encoder, encoder_id
from index.models.fields import FieldSet, FieldSpec
from index.models.matcher import Matcher
from index.release.release import publish
from index.sound.sketch import WIDTH
from index.tracks.track import Track
from tests.golden.golden_figures import FOLDER, clip, figures

DIMS, MATCHING, LISTENERS = 16, 8, 24
WORDS = ("abend", "nacht", "mai", "wald", "im", "der", "franz", "clara", "robert", "fanny", "by", "the", "track")
RNG = np.random.default_rng(20260101)


def constant(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def whole(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def unit(of: str) -> list[onnx.NodeProto]:
    """Nodes that scale `of` [b, d] to length 1 and call it "vector"."""
    return [
        helper.make_node("ReduceL2", [of, "last"], ["norm"], keepdims=1),
        helper.make_node("Div", [of, "norm"], ["vector"]),
    ]


def save(path: Path, nodes: list, inputs: dict[str, tuple[int, list]], constants: list, dims: int) -> None:
    """Write a model whose `inputs` are name -> (type, shape)."""
    described = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, [None, dims])
    graph = helper.make_graph(nodes, path.stem, described, [output], [whole("last", 1), *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def encoder(folder: Path) -> None:
    """Write encoder/: the mean spectrum, and the mean of word vectors, each turned by a random matrix."""
    folder.mkdir(parents=True)
    audio = [
        helper.make_node("ReduceMean", ["log_mel", "time"], ["spectrum"], keepdims=0),
        helper.make_node("MatMul", ["spectrum", "turn"], ["turned"]),
        *unit("turned"),
    ]
    shape = {"log_mel": (TensorProto.FLOAT, [1, 1, 1001, 64])}
    save(folder / "audio.onnx", audio, shape, [whole("time", 1, 2), constant("turn", 64, DIMS)], DIMS)
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    text = [
        helper.make_node("Gather", ["words", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["wide"]),
        helper.make_node("Mul", ["found", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "last"], ["sum"], keepdims=0),
        *unit("sum"),
    ]
    ids = {name: (TensorProto.INT64, ["b", "n"]) for name in ("input_ids", "attention_mask")}
    save(folder / "text.onnx", text, ids, [constant("words", len(vocabulary), DIMS), whole("two", 2)], DIMS)
    config = {
        "format": 1, "dims": DIMS, "max_tokens": 32, "pad_token_id": 0, "pad_token": "[PAD]",
        "clauses": ["title", "artist"], "audio_share": 0.4, "sample_rate": 48_000,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def matcher(folder: Path, fields: FieldSet) -> None:
    """Write matcher/: a random linear map of all fields."""
    folder.mkdir()
    blocks = 2 * DIMS // 8
    flat = ("language", "numeric", "numeric_known", "flat", "dense_known")
    nodes = [
        helper.make_node("Gather", ["languages", "categorical"], ["found"]),
        helper.make_node("Reshape", ["found", "rest"], ["language"]),
        helper.make_node("Reshape", ["dense", "rest"], ["flat"]),
        helper.make_node("Concat", list(flat), ["all"], axis=1),
        helper.make_node("MatMul", ["all", "turn"], ["turned"]),
        *unit("turned"),
    ]
    inputs = {
        "categorical": (TensorProto.INT64, ["b", 1]),
        "numeric": (TensorProto.FLOAT, ["b", 1]),
        "dense": (TensorProto.FLOAT, ["b", blocks, 8]),
        "numeric_known": (TensorProto.FLOAT, ["b", 1]),
        "dense_known": (TensorProto.FLOAT, ["b", blocks]),
    }
    width = 4 + 2 + 2 * DIMS + blocks
    constants = [
        constant("languages", *fields.sizes("categorical"), 4),
        whole("rest", 0, -1),
        constant("turn", width, MATCHING),
    ]
    save(folder / "matcher.onnx", nodes, inputs, constants, MATCHING)
    (folder / "fields.json").write_text(fields.to_json(), encoding="utf-8")


def songs() -> list[Track]:
    return [
        Track(
            f"song-{number:02}",
            title=("Abend im Wald", "Nacht", "Mai", "Der Wald")[number % 4],
            artist=(None, "Franz", "Clara", "Robert", "Fanny")[number % 5],
            album="Wald" if number % 3 else None,
            duration_s=100.5 + number,
            release_date=f"20{number:02}-05-31",
            explicit=(None, False, True)[number % 3],
            language=("de", "nl", None)[number % 3],
            genres=(("folk",), ("folk", "lied"), ())[number % 3],
            attributes={"born": 1800.0 + number} if number % 2 else {},
        )
        for number in range(20)
    ]


def fill(folder: Path) -> None:
    tracks = songs()
    encoder(folder / "encoder")
    towers = Encoder.open(folder / "encoder", 1)
    mels = [clip() + RNG.normal(0, 20, (1, 1, 64)).astype(np.float32) for _ in tracks]
    embedded = [
        towers.track(None if number == 5 else mel, caption(track, towers.clauses), None)
        for number, (track, mel) in enumerate(zip(tracks, mels, strict=True))
    ]
    missing = dict.fromkeys(("audio", "text", "continuation"), DIMS) | {"sketch": WIDTH}
    vectors = {
        name: np.stack([np.full(d, np.nan, np.float32) if (v := getattr(one, name)) is None else v for one in embedded])
        for name, d in missing.items()
    }
    dense = {"audio": vectors["audio"], "text": vectors["text"]}
    specs = (
        FieldSpec("language", "categorical", "language"),
        FieldSpec("born", "numeric", "born"),
        FieldSpec("audio", "dense", "audio", block=8),
        FieldSpec("text", "dense", "text", block=8),
    )
    fields = FieldSet.fit(specs, tracks, dense)
    matcher(folder / "matcher", fields)
    matching = Matcher.open(folder / "matcher", 1).vectors(tracks, dense)
    heard = RNG.random((LISTENERS, len(tracks))) < 0.3
    heard[:, -4:] = False
    listener, row = np.nonzero(heard)
    write_collection(folder, tracks, heard.sum(0), vectors, matching)
    plays = RNG.integers(1, 9, len(row)).astype(np.float32)
    ids = [f"listener-{n}" for n in range(LISTENERS)]
    write_audience(folder / "audience", ids, listener, row, plays, matching, activity=0.25)


def main() -> None:
    """Write FOLDER anew."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "work")
        fill(work)
        facts = {
            "dims": {"continuation": DIMS, "matching": MATCHING},
            "counts": {"tracks": len(songs()), "cold_tracks": 4, "listeners": LISTENERS},
            "encoder_id": encoder_id(work / "encoder"),
        }
        made = publish(
            Path(folder, "releases"),
            lambda staging: shutil.copytree(work, staging, dirs_exist_ok=True),
            facts=facts,
            now=datetime(2026, 1, 1, tzinfo=UTC),
        )
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(made.path, FOLDER / "release")
    text = json.dumps(figures(FOLDER / "release"), indent=1, ensure_ascii=False)
    (FOLDER / "figures.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
