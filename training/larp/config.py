"""The settings of LARP: towers, augmentation, momentum and stages, saved beside the checkpoint they made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from index.caption import CLAUSES
from index.errors import DebutError
from training.loop import LoopConfig

LOSSES = ("wtc", "ttc", "tpc")


class SettingsError(DebutError):
    """A setting of the training outside its range."""

    code = "settings"


@dataclass(frozen=True)
class AudioTowerConfig:
    """HTS-AT (transformers' ClapAudioModel), from scratch in these sizes or from a checkpoint."""

    checkpoint: str | None = None
    """Local directory with config.json and model.safetensors; the sizes below are then unused."""
    width: int = 32
    """Channels of a patch; each further stage has twice as many."""
    depths: tuple[int, ...] = (1, 1, 2, 1)
    """Blocks in each stage."""
    heads: tuple[int, ...] = (2, 4, 8, 8)
    """Attention heads in each stage."""
    patch: int = 4
    """Side of a patch of the 256 x 256 image that a clip is folded to."""
    window: int = 8
    """Side of an attention window in patches."""
    dropout: float = 0.1
    """Dropout after patches and projections."""
    lr_scale: float = 1.0
    """The encoder's learning rate as a multiple of the stage's; its head has the stage's own."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths {self.depths} and heads {self.heads} must be of one length")


@dataclass(frozen=True)
class TextTowerConfig:
    """BERT and its word pieces, from scratch in these sizes or from a checkpoint."""

    checkpoint: str | None = None
    """Directory with config.json, model.safetensors and tokenizer.json; the sizes below are then unused."""
    width: int = 128
    """Hidden size."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    vocabulary: int = 4000
    """Most word pieces that are learnt from the captions of the training tracks."""
    max_tokens: int = 64
    """Longer captions are cut off."""
    dropout: float = 0.1
    """Dropout of hidden states and attention."""
    lr_scale: float = 1.0
    """The encoder's learning rate as a multiple of the stage's; its head has the stage's own."""


@dataclass(frozen=True)
class AugmentConfig:
    """What is changed at random in training. Clips are besides cut at random from their excerpts."""

    time_stripes: int = 2
    """SpecAugment: stripes of frames blanked in each clip."""
    time_width: int = 64
    """Most frames in such a stripe."""
    frequency_stripes: int = 2
    """SpecAugment: stripes of mel bins blanked in each clip."""
    frequency_width: int = 8
    """Most bins in such a stripe."""
    drop_clause: Mapping[str, float] = field(default_factory=dict)
    """Probability that a clause of the caption is left out, by its name; the last clause always stays."""

    def __post_init__(self) -> None:
        for name, probability in self.drop_clause.items():
            if name not in CLAUSES or not 0 <= probability <= 1:
                raise ValueError(f"drop_clause maps {CLAUSES} to probabilities, not {name!r} to {probability}")


@dataclass(frozen=True)
class StageConfig:
    """One of the three stages: which losses, how long, how fast."""

    losses: tuple[str, ...]
    """Of "wtc", "ttc" and "tpc"; their sum is optimised (Eq. 7-9)."""
    epochs: int
    """Most passes over the training tracks."""
    lr: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 3000
    """Steps of linear warm-up."""
    patience: int = 5
    """Epochs without a better validation score before the stage ends; 0 runs all."""

    def __post_init__(self) -> None:
        unknown = set(self.losses) - set(LOSSES)
        if unknown or not self.losses:
            raise ValueError(f"losses are some of {LOSSES}, not {self.losses}")


PAPER_STAGES = (
    StageConfig(("wtc",), epochs=45),
    StageConfig(("wtc", "ttc"), epochs=45),
    StageConfig(("wtc", "ttc", "tpc"), epochs=45),
)


@dataclass(frozen=True)
class LarpConfig:
    """Everything that a LARP training is told. Raises ValueError for a value outside its range."""

    audio: AudioTowerConfig = AudioTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    augment: AugmentConfig = AugmentConfig()
    stages: tuple[StageConfig, ...] = PAPER_STAGES
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Optimiser, precision, device, threads and seed; epochs, lr, warm-up and patience are the stage's."""
    dims: int = 256
    """Size of the shared space."""
    clauses: tuple[str, ...] = CLAUSES
    """Clauses of the caption: some of "title", "artist", "album"."""
    batch_size: int = 50
    """Tracks encoded in a step (with their pairs from stage 2 on)."""
    temperature: float = 0.07
    """Where the learnt temperature starts; it stays in [0.001, 0.5]."""
    momentum: float = 0.995
    """m of the momentum encoders: theta_m <- m theta_m + (1 - m) theta."""
    queue: int = 57_600
    """Columns of the audio and of the text queue; 0: none, the negatives are those of the batch."""
    seeds: int = 10
    """J: tracks that are fused to a playlist in TPC."""
    parent_weight: str = "uniform"
    """How a track's playlist is drawn: "uniform", or "log": by 1 / log(1 + length)."""
    audio_share: float | None = 0.5
    """w of a track's vector l2(w audio + (1 - w) text): 0.5 is Eq. 11; None is chosen on validation, because where one
    tower has little to go by, as with few songs of one timbre, half its noise drowns the other."""
    validation_draws: int = 10
    """Draws of seeds from each validation playlist; their mean Recall@10 selects the epoch."""

    def __post_init__(self) -> None:
        unknown = set(self.clauses) - set(CLAUSES)
        if unknown or not self.clauses:
            raise ValueError(f"clauses are some of {CLAUSES}, not {self.clauses}")
        if not 0.001 <= self.temperature <= 0.5:
            raise ValueError(f"temperature must be in [0.001, 0.5], not {self.temperature}")
        if self.audio_share is not None and not 0 <= self.audio_share <= 1:
            raise ValueError(f"audio_share must be in [0, 1] or None, not {self.audio_share}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
        for name, least in (
            ("dims", 1),
            ("batch_size", 2),
            ("queue", 0),
            ("seeds", 1),
            ("validation_draws", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.parent_weight not in ("uniform", "log"):
            raise ValueError(f'parent_weight must be "uniform" or "log", not {self.parent_weight!r}')
        if not self.stages:
            raise ValueError("stages must not be empty")

    def loop_of(self, stage: StageConfig) -> LoopConfig:
        """Return the loop's settings in one stage."""
        return replace(
            self.loop,
            epochs=stage.epochs,
            lr=stage.lr,
            warmup_steps=stage.warmup_steps,
            patience=stage.patience,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; checkpoints are named without their folders."""
        plain = asdict(self)
        for tower in ("audio", "text"):
            if plain[tower]["checkpoint"]:
                plain[tower]["checkpoint"] = plain[tower]["checkpoint"].rstrip("/").rsplit("/", 1)[-1]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "LarpConfig":
        """Inverse of `to_json`. Raises ValueError for an unknown setting."""
        parts = {
            "audio": AudioTowerConfig,
            "text": TextTowerConfig,
            "augment": AugmentConfig,
            "loop": LoopConfig,
        }
        values = {name: _build(parts[name], value) if name in parts else value for name, value in plain.items()}
        if "stages" in values:
            values["stages"] = tuple(_build(StageConfig, stage) for stage in values["stages"])
        built: LarpConfig = _build(cls, values)
        return built


def _build(kind: Any, plain: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := set(plain) - known:
        raise ValueError(f"{kind.__name__} has no settings {sorted(unknown)}; it has {sorted(known)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})


PRESETS: dict[str, LarpConfig] = {
    # Optimiser and schedule of section 4.1.3, for large GPUs and checkpoints; without those, small towers from scratch.
    "paper": LarpConfig(),
    # The demo's 240 songs in minutes on two cores.
    "demo": LarpConfig(
        audio=AudioTowerConfig(patch=16, width=64, depths=(1, 1), heads=(4, 8)),
        text=TextTowerConfig(lr_scale=0.1, dropout=0.0),
        stages=(
            StageConfig(("wtc",), epochs=6, lr=1e-3, warmup_steps=10, patience=0),
            StageConfig(("wtc", "ttc"), epochs=8, lr=1e-3, warmup_steps=10, patience=0),
            StageConfig(("wtc", "ttc", "tpc"), epochs=10, lr=1e-3, warmup_steps=10, patience=0),
        ),
        batch_size=64,
        queue=0,  # over so few steps the towers drift: telling stale keys from fresh ones is easier than learning
        momentum=0.9,
        audio_share=None,
        loop=LoopConfig(threads=1),  # so that the weights do not depend on how many cores there are, or how busy
    ),
}


def larp_preset(name: str, *, seed: int = 0, **changes: Any) -> LarpConfig:
    """Return ready settings with a seed, and with `changes` to single ones. Raises SettingsError."""
    if name not in PRESETS:
        raise SettingsError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    try:
        return replace(preset, loop=replace(preset.loop, seed=seed), **changes)
    except (TypeError, ValueError) as error:
        raise SettingsError(str(error)) from error
