"""The exported towers, held against the torch modules they came from; and what a track's vectors are made of."""

import hashlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from index_towers import DIMS, MAX_TOKENS
from recordings import song_samples

from index.models.encoder import Encoder, EncoderError, continuation, encoder_id, l2
from index.models.onnxmodel import ModelError, OnnxModel
from index.sound.audio import repeat_pad
from index.sound.features import log_mel

TEXTS = ["der abend im wald", "A track by Franz, on album Mai", "clara", "nachten " * 40, "Ünknown wörds 7"]


@pytest.fixture(scope="module")
def encoder(towers) -> Encoder:
    return Encoder.open(towers.directory, threads=1)


@pytest.fixture(scope="module")
def mels() -> np.ndarray:
    """Three clips of songs, as log-mel f32 [3, 1001, 64]."""
    return log_mel(np.stack([repeat_pad(song_samples(song)[0][0, :400_000]) for song in range(3)]))


class TestTowers:
    def test_audio_is_what_torch_computes(self, towers, encoder, mels):
        with torch.no_grad():
            expected = towers.modules["audio"](torch.from_numpy(mels)[:, None]).numpy()
        vectors = encoder.audio(mels)
        assert vectors.dtype == np.float32
        assert vectors.shape == (3, DIMS)
        assert np.abs(vectors - expected).max() < 1e-4
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5

    def test_text_is_what_torch_computes(self, towers, encoder):
        tokenizer = towers.extra
        tokenizer.enable_truncation(MAX_TOKENS)
        for text, vector in zip(TEXTS, encoder.text(TEXTS), strict=True):
            ids = torch.tensor([tokenizer.encode(text).ids])
            assert ids.shape[1] <= MAX_TOKENS
            with torch.no_grad():
                expected = towers.modules["text"](ids, torch.ones_like(ids)).numpy()[0]
            assert np.abs(vector - expected).max() < 1e-5

    def test_a_text_does_not_depend_on_its_company(self, encoder):
        many = (TEXTS * 20)[:77]  # more than one batch, of texts of all lengths
        vectors = encoder.text(many)
        alone = np.concatenate([encoder.text([text]) for text in TEXTS])
        assert np.abs(vectors - np.tile(alone, (16, 1))[:77]).max() < 1e-5

    def test_nothing_in_nothing_out(self, encoder):
        assert encoder.text([]).shape == (0, DIMS)
        assert encoder.audio(np.empty((0, 1001, 64), np.float32)).shape == (0, DIMS)

    def test_other_shapes_are_refused(self, encoder):
        with pytest.raises(ValueError, match="must be"):
            encoder.audio(np.zeros((1, 1000, 64), np.float32))

    def test_many_threads_at_once(self, encoder, mels):
        """More threads than pooled requests, on one encoder: every answer is the one of a single thread."""
        audio, text = encoder.audio(mels), encoder.text(TEXTS)
        with ThreadPoolExecutor(12) as pool:
            audios = list(pool.map(lambda _: encoder.audio(mels), range(24)))
            texts = list(pool.map(lambda _: encoder.text(TEXTS), range(48)))
        assert all(np.array_equal(each, audio) for each in audios)
        assert all(np.abs(each - text).max() < 1e-6 for each in texts)


class TestTrack:
    def test_the_parts_of_a_track(self, encoder, mels):
        vectors = encoder.track(mels, "The track Im Mai by Clara", "der wald, die nacht")
        clips, texts = encoder.audio(mels), encoder.text(["The track Im Mai by Clara", "der wald, die nacht"])
        mean = clips.astype(np.float64).mean(axis=0)
        assert np.abs(vectors.audio - mean / np.linalg.norm(mean)).max() < 1e-6
        assert np.abs(vectors.text - texts[0]).max() < 1e-6
        assert np.abs(vectors.lyrics - texts[1]).max() < 1e-6
        both = vectors.audio.astype(np.float64) + vectors.text  # LARP, Eq. 11
        assert np.abs(vectors.continuation - both / np.linalg.norm(both)).max() < 1e-6
        assert vectors.continuation.dtype == np.float32

    @pytest.mark.parametrize("lyrics", [None, "", " \n"])
    def test_what_is_missing_is_none(self, encoder, mels, lyrics):
        no_text = encoder.track(mels, "", lyrics)
        assert no_text.text is None
        assert no_text.lyrics is None
        assert np.array_equal(no_text.continuation, no_text.audio)
        no_audio = encoder.track(None, "The track Im Mai", lyrics)
        assert no_audio.audio is None
        assert np.array_equal(no_audio.continuation, no_audio.text)
        assert encoder.track(mels[:0], "The track Im Mai", lyrics).audio is None

    def test_lyrics_alone_place_no_track(self, encoder):
        with pytest.raises(EncoderError, match="neither audio nor a title") as caught:
            encoder.track(None, "", "der wald")
        assert caught.value.code == "nothing_to_encode"

    def test_opposite_parts(self):
        vector = np.eye(1, 4, dtype=np.float32)[0]
        assert np.array_equal(continuation(vector, -vector), np.zeros(4))
        assert np.array_equal(l2(3 * vector), vector)


class TestFiles:
    def test_what_the_encoder_says_of_itself(self, towers, encoder):
        assert encoder.dims == DIMS
        assert encoder.clauses == ("title", "artist")
        lines = [
            f"{name} {hashlib.sha256((towers.directory / name).read_bytes()).hexdigest()}\n"
            for name in sorted(path.name for path in towers.directory.iterdir())
        ]
        assert encoder.id == encoder_id(towers.directory) == hashlib.sha256("".join(lines).encode()).hexdigest()

    @pytest.fixture
    def copy(self, towers, tmp_path) -> Path:
        return Path(shutil.copytree(towers.directory, tmp_path / "encoder"))

    @pytest.mark.parametrize("name", ["audio.onnx", "text.onnx", "tokenizer.json", "config.json"])
    def test_every_file_is_needed_and_counts(self, copy, encoder, name):
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert encoder_id(copy) != encoder.id
        for damage in (b"", b"\0damaged" * 100):
            (copy / name).write_bytes(damage)
            with pytest.raises(ModelError, match=name) as caught:
                Encoder.open(copy)
            assert caught.value.code == "model_damaged"
        (copy / name).unlink()
        with pytest.raises(ModelError, match=name):
            Encoder.open(copy)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 2}, "format 2"),
            ({"sample_rate": 44_100}, "44100 Hz"),
            ({"clauses": ["title", "mood"]}, "unknown caption clauses"),
            ({"dims": 64}, "config.json says 64"),
            ({"max_tokens": None}, "no tokenizer for config.json"),
            ({"clauses": 5}, "cannot be read"),
            ({"audio_share": 1.5}, "outside"),
            ({"audio_share": None}, "cannot be read"),
        ],
    )
    def test_a_configuration_that_does_not_fit(self, copy, change, message):
        config = {**json.loads((copy / "config.json").read_text()), **change}
        (copy / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=message):
            Encoder.open(copy)

    def test_a_model_with_another_output(self, towers, small_matcher):
        assert OnnxModel(small_matcher.directory / "matcher.onnx", 1).dims == 12
        with pytest.raises(ModelError, match="no usable model"):
            OnnxModel(towers.directory / "config.json", 1)


def test_openvino_does_not_phone_home(tmp_path):
    """Importing openvino as it is would post a usage event and leave an id in the home folder."""
    script = (
        "import sys, index.models.encoder, openvino\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
        "import threading; print(threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"HOME": str(tmp_path), "PATH": ""}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"
    assert not list(tmp_path.iterdir())
