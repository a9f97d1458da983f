"""Every choice of a BCL run, typed and checked, saved beside the weights it made."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from index.errors import DebutError
from index.models.fields import FieldSpec
from training.bcl.augment import OPERATORS
from training.bcl.similarity import Similarity
from training.loop import LoopConfig

FORMAT = 2
CONTENT_SHARE = 0.5
"""`content_share` where no validation track was heard: the best on HetRec last.fm (docs/evidence.md)."""


class BclError(DebutError):
    """A BCL run that cannot start, or a checkpoint that does not fit."""

    code = "bcl_failed"


@dataclass(frozen=True)
class BclConfig:
    """How BCL is built and trained. Raises ValueError for a value outside its range."""

    fields: tuple[FieldSpec, ...] = ()
    """Fields of a track; empty: chosen from what the data set holds (`training.bcl.fields`)."""
    min_count: int = 1
    """Values of a categorical field that fewer training tracks have count as unknown."""
    hidden: tuple[int, ...] = (512, 256)
    """Widths of the encoder's hidden layers."""
    dims: int = 128
    """Length of a track's trained vector z."""
    content_dims: int = 128
    """Length of its content vector c (`training.bcl.content`); 0: a release holds z alone."""
    content_share: float | None = None
    """What c counts in the cosine of two tracks of a release, z the rest; None: chosen on validation tracks
    (`training.bcl.share`)."""
    projected: int = 64
    """Length of the vector that the contrastive loss compares."""
    field_dims: int = 32
    """Length of a field's embedding; dense fields must be cut into blocks of this width."""
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    unknown_rate: float = 0.1
    """Share of a track's fields replaced by "unknown" in training, so that a new artist is nothing new."""
    neighbours: int = 20
    """Positives kept of a track: its nearest by `pairs`."""
    pairs: str = "itemcf"
    """By which similarity of audiences (`training.bcl.similarity`): "itemcf" or "swing"."""
    swing_alpha: float = 1.0
    """alpha of Swing: the larger, the less the listeners' other tracks in common count."""
    min_common: int = 2
    """Listeners that a pair of neighbours must share."""
    least: float = 0.0
    """Similarity that a pair of neighbours must have."""
    anchor_power: float = 0.5
    """Anchors are drawn by listeners^power."""
    supervised: str = "bpr"
    """The supervised loss: "bpr", or "softmax" over the step's positives and a uniform pool, with logQ correction."""
    negatives: int = 1
    """Uniform negatives a pair, of "bpr"."""
    pool: int = 1024
    """Uniform negatives a step, of "softmax", shared by all its pairs."""
    batch: int = 1024
    """Pairs a step in the supervised loss."""
    items: int = 1024
    """Tracks a step in the contrastive loss, of the whole catalogue (all of it when it is smaller)."""
    steps: int = 0
    """Steps an epoch; 0: as many as show every pair once on average."""
    bpr_temperature: float = 0.1
    """tau_s at the start (learned, within 0.01..1) of the supervised loss."""
    contrastive_weight: float = 0.1
    """lambda of L = L_s + lambda L_c; 0 is BPR only."""
    contrastive_temperature: float = 0.1
    """tau of the contrastive loss."""
    correlation_alpha: float = 0.9
    """Share of the old correlation matrix kept at an update; 1 never updates it (no bootstrapping)."""
    correlation_every: int = 20
    """Steps between updates of the correlation matrix."""
    correlation_sample: int = 1024
    """Tracks that the first correlation matrix is measured on."""
    correlation_batch: int = 256
    """Tracks that each update is measured on."""
    grouping_temperature: float = 1.0
    """T_g: 0 groups the most correlated fields, large values group at random."""
    random_groups: bool = False
    """Group at random whatever the correlation (the ablation without CGM)."""
    augmentations: tuple[str, ...] = tuple(OPERATORS)
    """Operators that disturb the views."""
    validation_cut: int = 50
    """K of the validation Recall@K that training is stopped by."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=100, lr=1e-3, patience=10, precision="fp32"))
    """Optimiser, epochs, patience and seed."""

    def __post_init__(self) -> None:
        for name in ("min_count", "dims", "projected", "field_dims", "neighbours", "min_common", "negatives", "pool"):
            _check(name, getattr(self, name), getattr(self, name) >= 1)
        for name in (
            "batch",
            "items",
            "correlation_every",
            "validation_cut",
            "bpr_temperature",
            "contrastive_temperature",
        ):
            _check(name, getattr(self, name), getattr(self, name) > 0)
        for name in (
            "steps",
            "swing_alpha",
            "contrastive_weight",
            "grouping_temperature",
            "anchor_power",
            "content_dims",
            "least",
        ):
            _check(name, getattr(self, name), getattr(self, name) >= 0)
        for name in ("unknown_rate", "dropout"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1)
        _check("content_share", self.content_share, self.content_share is None or 0 <= self.content_share < 1)
        for name in ("items", "correlation_sample", "correlation_batch"):
            _check(name, getattr(self, name), getattr(self, name) >= 4)
        _check("correlation_alpha", self.correlation_alpha, 0 <= self.correlation_alpha <= 1)
        _choice("pairs", self.pairs, get_args(Similarity))
        _choice("supervised", self.supervised, ("bpr", "softmax"))
        known = bool(self.augmentations) and set(self.augmentations) <= set(OPERATORS)
        _check("augmentations", self.augmentations, known)
        wrong = [spec.name for spec in self.fields if spec.kind == "dense" and spec.block != self.field_dims]
        if wrong:
            raise ValueError(f"dense fields {wrong} must be cut into blocks of field_dims = {self.field_dims}")

    def to_json(self) -> str:
        """Return the configuration as JSON text; `from_json` gives an equal one."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "BclConfig":
        """Read what `to_json` wrote. Raises BclError when it is damaged or of another format."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise BclError(f"this config.json is of another format than {FORMAT}: train again")
            loop = data.pop("loop")
            loop["betas"] = tuple(loop["betas"])
            fields = tuple(FieldSpec(**spec) for spec in data.pop("fields"))
            plain = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
            return cls(fields=fields, loop=LoopConfig(**loop), **plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BclError(f"config.json of the BCL checkpoint is damaged ({error!r}): train again") from error


def _check(name: str, value: object, holds: bool) -> None:
    if not holds:
        raise ValueError(f"BclConfig.{name} cannot be {value!r}")


def _choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"BclConfig.{name} is one of {', '.join(known)}, not {value!r}")


PRESETS: dict[str, BclConfig] = {
    # As published, for catalogues of thousands of tracks and more.
    "paper": BclConfig(),
    # A few thousand tracks with listeners: half a minute on one core. Chosen on the validation tracks of HetRec last.fm
    # (benchmarks/hetrec.py), where the softmax is worth more than every other choice together.
    "small": BclConfig(
        supervised="softmax",
        batch=512,
        pool=512,
        items=128,
        steps=80,
        hidden=(256,),
        dropout=0.1,
        contrastive_weight=0.02,
        loop=LoopConfig(epochs=6, lr=6e-3, weight_decay=0.05, patience=0, precision="fp32", threads=1),
    ),
    # A few hundred tracks: seconds on one core; a second one would gain little, and its waiting costs a busy machine.
    "demo": BclConfig(
        batch=256,
        items=128,
        steps=8,
        dropout=0.2,
        unknown_rate=0.2,
        negatives=4,
        validation_cut=20,
        loop=LoopConfig(epochs=60, lr=3e-4, weight_decay=0.05, patience=12, precision="fp32", threads=1),
    ),
}


def bcl_preset(name: str, *, seed: int = 0, **changes: Any) -> BclConfig:
    """Return ready settings with a seed, and with `changes` to single ones. Raises BclError."""
    if name not in PRESETS:
        raise BclError(f"no preset {name!r}; there are {', '.join(PRESETS)}", code="bcl_setting")
    preset = PRESETS[name]
    try:
        return replace(preset, loop=replace(preset.loop, seed=seed), **changes)
    except (TypeError, ValueError) as error:
        raise BclError(str(error), code="bcl_setting") from error


def load_config(directory: Path) -> BclConfig:
    """Read config.json of a checkpoint. Raises BclError when it is missing or damaged."""
    try:
        return BclConfig.from_json((directory / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BclError(f"{directory} holds no BCL checkpoint: {error}", code="bcl_missing") from error
