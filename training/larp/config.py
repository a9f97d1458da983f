"""The settings of LARP: towers, augmentation, momentum and stages, saved beside the checkpoint they made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from index.errors import DebutError
from index.models.caption import CLAUSES
from index.models.caption import KINDS as CAPTIONS
from training.larp.fusion import HEADS, KINDS
from training.loop import LoopConfig

LOSSES = ("wtc", "ttc", "tpc")
TOWERS = ("audio", "text")
POOLINGS = ("auto", "cls", "mean")
_CHOICES = {
    "targets": ("multi", "diagonal"),
    "positives": ("mean", "sum"),
    "heads": ("trained", "whitened"),
    "sides": ("cross", "all"),
    "fusion": KINDS,
    "tables": ("pass", "zeros"),
    "parent_weight": ("uniform", "log"),
    "caption": CAPTIONS,
}


class SettingsError(DebutError):
    """A setting of the training outside its range."""

    code = "settings"


@dataclass(frozen=True)
class AudioTowerConfig:
    """HTS-AT (transformers' ClapAudioModel), from scratch in these sizes or from a checkpoint."""

    checkpoint: str | None = None
    """Directory with config.json and model.safetensors, or name on the Hugging Face hub; sizes are then unused."""
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
    fixed_norm: bool = True
    """Whether batch normalisations keep the checkpoint's (or the training tracks') statistics."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise ValueError(f"depths {self.depths} and heads {self.heads} must be of one length")


@dataclass(frozen=True)
class TextTowerConfig:
    """BERT and its word pieces, from scratch in these sizes or from a checkpoint."""

    checkpoint: str | None = None
    """Directory with config.json, model.safetensors and tokenizer.json, or name on the hub; sizes are then unused."""
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
    pooling: str = "auto"
    """"cls": the state of [CLS]; "mean": over the word pieces; "auto": what a checkpoint of sentence-transformers says
    in 1_Pooling/config.json, else "cls"."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, not {self.pooling!r}")


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


STAGES = tuple(StageConfig(LOSSES[: n + 1], epochs=45) for n in range(3))


@dataclass(frozen=True)
class LarpConfig:
    """Everything that a LARP training is told. Raises ValueError for a value outside its range."""

    audio: AudioTowerConfig = AudioTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    towers: tuple[str, ...] = TOWERS
    """Of "audio" and "text": with one alone, tracks are contrasted with tracks in it, and WTC has nothing to do."""
    augment: AugmentConfig = AugmentConfig()
    stages: tuple[StageConfig, ...] = STAGES
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Optimiser, precision, device, threads and seed; epochs, lr, warm-up and patience are the stage's."""
    freeze: bool = False
    """Whether heads alone are trained, on the encoders' outputs computed once."""
    spread: bool = True
    """Whether untrained heads are centred and scaled to their encoder's outputs (`heads.spread`)."""
    heads: str = "trained"
    """"whitened": not trained, but fitted to the encoders' outputs in closed form before training: the right head for
    encoders that know much already and for playlists too few to learn one from."""
    dims: int = 256
    """Size of the shared space."""
    clauses: tuple[str, ...] = CLAUSES
    """Clauses of the caption: some of "title", "artist", "album"."""
    caption: str = "sentence"
    """"sentence": "The track {title} by {artist} on album {album}", one text (section 4.1); "fields": each clause is
    encoded by itself, has a part of the space to itself and a learnt weight (`heads.FieldsHead`)."""
    batch_size: int = 50
    """Tracks that meet in a step (with their pairs from stage 2 on), over all ranks."""
    micro_batch: int = 0
    """Tracks encoded at once, the gradients accumulated, which are those of the whole batch; 0: all."""
    targets: str = "multi"
    """"multi": tracks that share a playlist are positives (Eq. 19, 25); "diagonal": the drawn pair alone."""
    positives: str = "mean"
    """"mean": each positive is to take its part of the target (the cross entropy of Eq. 19, 25); "sum": -log of what
    all take together, so that a track need not be near everything its playlists hold."""
    distill: float = 0.0
    """Share of the momentum towers' own opinion in the targets, reached linearly over a stage's first two epochs."""
    sides: str = "cross"
    """"cross": TTC and TPC contrast audio with text (Eq. 4, 5); "all": each tower with itself too."""
    temperature: float = 0.07
    """Where the learnt temperature starts; it stays in [0.001, 0.5]."""
    fixed_temperature: bool = False
    """Whether it stays where it starts."""
    momentum: float = 0.995
    """m of the momentum encoders: theta_m <- m theta_m + (1 - m) theta."""
    queue: int = 57_600
    """Columns of the audio and of the text queue; 0: none, the negatives are those of the batch."""
    seeds: int = 10
    """J: tracks that are fused to a playlist in TPC."""
    fusion: str = "residual"
    """How (`training.larp.fusion`): "residual", "attention", "mean" or "transformer"."""
    fusion_positions: bool = False
    """Whether the transformer fusion is told the tracks' order in the playlist."""
    tables: str = "pass"
    """What the lookup tables hold when TPC begins: "pass", every track's vectors; "zeros"."""
    parent_weight: str = "uniform"
    """How a track's playlist is drawn: "uniform", or "log": by 1 / log(1 + length)."""
    audio_share: float | None = 0.5
    """w of a track's vector l2(w audio + (1 - w) text): 0.5 is Eq. 11; None is chosen on validation, because where one
    tower has little to go by, as with few songs of one timbre, half its noise drowns the other."""
    validation_draws: int = 10
    """Draws of seeds from each validation playlist; their mean Recall@10 selects the epoch."""

    def __post_init__(self) -> None:
        self._check_names()
        if not 0.001 <= self.temperature <= 0.5:
            raise ValueError(f"temperature must be in [0.001, 0.5], not {self.temperature}")
        if self.audio_share is not None and not 0 <= self.audio_share <= 1:
            raise ValueError(f"audio_share must be in [0, 1] or None, not {self.audio_share}")
        for name in ("momentum", "distill"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        least = {"dims": 1, "batch_size": 2, "micro_batch": 0, "queue": 0, "seeds": 1, "validation_draws": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, not {getattr(self, name)}")
        self._check_together()

    def _check_together(self) -> None:
        if self.fusion == "transformer" and self.dims % HEADS:
            raise ValueError(f"the transformer fusion has {HEADS} heads: dims {self.dims} is no multiple of that")
        if self.freeze and self.augment.drop_clause:
            raise ValueError("freeze reads one caption a track: it cannot go with drop_clause")
        fields = len(self.clauses) if self.caption == "fields" and "text" in self.towers else 1
        if self.dims % fields:
            raise ValueError(f"{fields} fields share the space evenly: dims {self.dims} is no multiple of {fields}")
        if self.freeze and self.heads == "whitened" and self.fixed_temperature and fields == 1:
            raise ValueError("freeze, whitened heads and a fixed temperature leave nothing to train: change one")
        if self.heads == "whitened" and not self.spread:
            raise ValueError("whitened heads are always fitted: they cannot go without spread")

    def _check_names(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, not {getattr(self, name)!r}")
        for name, known in (("clauses", CLAUSES), ("towers", TOWERS)):
            chosen = getattr(self, name)
            if set(chosen) - set(known) or not chosen or len(set(chosen)) < len(chosen):
                raise ValueError(f"{name} are some of {known}, each once, not {chosen}")
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
