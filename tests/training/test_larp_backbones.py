"""Audio towers other than HTS-AT: AST, Wav2Vec2 and Whisper, from checkpoint to trained vectors."""

import json
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.signal import resample_poly
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from index.sound.audio import decode_span
from training.data.clips import ClipCache
from training.data.dataset import DataSet
from training.data.frontend import LOG_MEL, FrontEnd
from training.larp.checkpoint import load_larp, save_larp
from training.larp.config import AudioTowerConfig, LarpConfig
from training.larp.content import LiveContent, encode
from training.larp.features import FrozenContent
from training.larp.model import Larp
from training.larp.presets import larp_preset
from training.larp.towers import (
    CheckpointError,
    FrontEndError,
    build_larp,
    check_servable,
    encoder_configs,
    front_end,
)
from training.larp.training import Run, Trainer
from training.loop import LoopConfig
from training.progress import Silent

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PCM = FrontEnd("pcm", 16_000)
KINDS = ("ast", "wav2vec2", "hubert", "whisper")
CONVOLUTIONS = {"conv_dim": (8, 8, 8), "conv_stride": (20, 8, 4), "conv_kernel": (20, 8, 4)}
POSITIONS = {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


def ast_model() -> PreTrainedModel:
    return ASTForAudioClassification(ASTConfig(**SIZES, frequency_stride=16, time_stride=32))


def wav2vec2_model() -> PreTrainedModel:
    codes = {"codevector_dim": 8, "proj_codevector_dim": 8, "mask_time_prob": 0.5, "mask_feature_prob": 0.5}
    return Wav2Vec2ForPreTraining(Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **POSITIONS, **codes))


def hubert_model() -> PreTrainedModel:
    return HubertForCTC(HubertConfig(**SIZES, **CONVOLUTIONS, **POSITIONS, vocab_size=40))


def whisper_model() -> PreTrainedModel:
    sizes = (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    parts = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes}
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    unused = {"suppress_tokens": None, "begin_suppress_tokens": None}
    return WhisperForConditionalGeneration(WhisperConfig(**parts, **tokens, **unused, d_model=16))


MODELS = {"ast": ast_model, "wav2vec2": wav2vec2_model, "hubert": hubert_model, "whisper": whisper_model}
EXTRACTORS = {
    "ast": ASTFeatureExtractor,
    "wav2vec2": Wav2Vec2FeatureExtractor,
    "hubert": Wav2Vec2FeatureExtractor,
    "whisper": WhisperFeatureExtractor,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind as it is published: with the head of its pre-training, and its feature extractor."""
    root, found = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, kind in enumerate(KINDS):
        torch.manual_seed(seed)
        MODELS[kind]().save_pretrained(root / kind)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filter")  # AST's own settings
            EXTRACTORS[kind]().save_pretrained(root / kind)
        found[kind] = root / kind
    return found


@pytest.fixture(scope="module")
def dataset(small_data: Path) -> DataSet:
    return DataSet.open(small_data)


@pytest.fixture(scope="module")
def clips(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    return ClipCache.build(dataset, tmp_path_factory.mktemp("clips"), Silent(), front_end=PCM)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(folder: Path, **changes: object) -> LarpConfig:
    tiny = larp_preset("tiny", seed=1, clauses=("title", "artist"))
    stages = tuple(replace(stage, epochs=1) for stage in tiny.stages)
    return replace(tiny, audio=AudioTowerConfig(str(folder)), stages=stages, dims=8, **changes)


def built(folder: Path) -> Larp:
    torch.manual_seed(9)
    return build_larp(config_of(folder, towers=("audio",)), []).eval()


def own_answer(kind: str, folder: Path, samples: np.ndarray) -> torch.Tensor:
    """What transformers itself says of samples at 16 kHz."""
    extractor = EXTRACTORS[kind].from_pretrained(folder)
    inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    if kind == "ast":
        return ASTModel.from_pretrained(folder).eval()(**inputs).pooler_output
    if kind in ("wav2vec2", "hubert"):
        model = Wav2Vec2Model if kind == "wav2vec2" else HubertModel
        return model.from_pretrained(folder).eval()(**inputs).last_hidden_state.mean(1)
    states = WhisperModel.from_pretrained(folder).eval().get_encoder()(**inputs).last_hidden_state
    assert states.shape[1] == 1500  # 30 s, of which the clip is the first third
    return states[:, :500].mean(1)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_a_real_clip_gives_what_transformers_itself_gives(
    kind: str, checkpoints: dict[str, Path], dataset: DataSet, clips: ClipCache
) -> None:
    folder, row = checkpoints[kind], 0
    config = config_of(folder, towers=("audio",))
    assert front_end(config) == PCM
    larp = built(folder)
    content = LiveContent(dataset, clips, config)
    (inputs,) = content.inputs("audio", np.array([row, 1]), larp)
    found = larp.audio.pooled(inputs)[0]

    whole = decode_span(dataset.root / dataset.audio[row], None, 30.0)
    spare = len(whole) // 3 - 160_000
    samples = resample_poly(whole, 1, 3)[spare // 2 :][:160_000]
    assert np.abs(clips.crops(np.array([row]), None)[0] - samples).max() < 2e-5  # 16 bit
    expected = own_answer(kind, folder, clips.crops(np.array([row]), None)[0])[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found, own_answer(kind, folder, samples)[0], atol=5e-3)
    vectors = encode(larp, "audio", content, np.array([row, 1]))
    assert vectors.shape == (2, 8)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tower_is_loaded_as_it_was(
    kind: str, checkpoints: dict[str, Path], dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    config = config_of(checkpoints[kind], towers=("audio",))
    larp = built(checkpoints[kind])
    save_larp(larp, config, tmp_path / "larp", "")
    again = load_larp(tmp_path / "larp")
    saved = json.loads((tmp_path / "larp/config.json").read_text())
    assert saved["audio"]["feature_extractor"]["feature_extractor_type"] == EXTRACTORS[kind].__name__
    assert str(checkpoints[kind]) not in (tmp_path / "larp/config.json").read_text()
    assert again.audio.front_end == PCM
    assert encoder_configs(again) == encoder_configs(larp)
    content, rows = LiveContent(dataset, clips, config), np.arange(2)
    assert np.array_equal(encode(again, "audio", content, rows), encode(larp, "audio", content, rows))


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_stages_train_another_tower(
    kind: str, checkpoints: dict[str, Path], dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    loop = LoopConfig(precision="bf16", device="cpu", threads=1)  # extractors stay in full precision
    config = config_of(checkpoints[kind], loop=loop)
    trainer = Trainer(dataset, clips, Run(tmp_path / "larp"), config, Silent())
    before = {name: weight.clone() for name, weight in trainer.larp.audio.encoder.state_dict().items()}
    state = np.random.get_state()[1].copy()
    for number in (1, 2, 3) if kind == "wav2vec2" else (1,):
        _, found = trainer.stage(number)
        assert np.isfinite(found.best_score)
    after = trainer.larp.audio.encoder.state_dict()
    assert all(torch.isfinite(weight).all() for weight in after.values())
    fixed = {"masked_spec_embed", "embed_positions.weight"}  # unused, and no parameter to learn
    assert {name for name in after if torch.equal(after[name], before[name])} <= fixed
    assert np.array_equal(np.random.get_state()[1], state)  # its own masking would draw from NumPy's global generator


@pytest.mark.parametrize("kind", ["ast", "whisper"])
def test_frozen_encoders_are_asked_once(
    kind: str, checkpoints: dict[str, Path], dataset: DataSet, clips: ClipCache, tmp_path: Path
) -> None:
    config = config_of(checkpoints[kind], freeze=True)
    run = Run(tmp_path / "larp", features=tmp_path / "features")
    trainer = Trainer(dataset, clips, run, config, Silent())
    assert isinstance(trainer.content, FrozenContent)
    trainer.stage(1)
    row = trainer.corpus.rows[:1]
    with torch.no_grad():
        inputs = LiveContent(dataset, clips, config).inputs("audio", row, trainer.larp)
        live = trainer.larp.eval().audio.pooled(*inputs)
    (kept,) = trainer.content.inputs("audio", row, trainer.larp)
    assert torch.allclose(kept, live, atol=2e-3)  # 16 bit


def test_what_cannot_be_an_audio_tower_is_said(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "ast"
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((checkpoints["ast"] / file).read_bytes())
    with pytest.raises(CheckpointError, match=r"ast has no preprocessor_config\.json: save it"):
        built(folder)
    (folder / "preprocessor_config.json").write_text('{"feature_extractor_type": "NoSuchThing"}')
    with pytest.raises(CheckpointError, match="gives no feature extractor of sound"):
        front_end(config_of(folder))
    settings = (checkpoints["whisper"] / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(settings)
    with pytest.raises(CheckpointError, match="cannot be an audio tower"):
        built(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["audio_spectrogram_transformer.layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: layernorm\.weight"):
        built(folder)


def test_the_service_is_not_given_what_it_cannot_feed(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(FrontEndError, match="'whisper' audio tower can be trained and measured, but the service"):
        check_servable(built(checkpoints["whisper"]))
    tiny = larp_preset("tiny", towers=("audio",))
    assert front_end(tiny) == LOG_MEL
    check_servable(build_larp(tiny, []))


def test_clips_of_another_front_end_are_refused(
    checkpoints: dict[str, Path], dataset: DataSet, clips: ClipCache
) -> None:
    config = larp_preset("tiny", towers=("audio",))
    with pytest.raises(ValueError, match=r"the clips are .*pcm.*, the audio tower wants .*log_mel"):
        LiveContent(dataset, clips, config).inputs("audio", np.arange(1), build_larp(config, []))
