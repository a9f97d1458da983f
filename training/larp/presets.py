"""Ready settings of LARP, from the paper's to a demo's."""

from dataclasses import replace
from typing import Any

from training.larp.config import AudioTowerConfig, LarpConfig, SettingsError, StageConfig, TextTowerConfig
from training.loop import LoopConfig

HTSAT, BERT = "laion/clap-htsat-unfused", "bert-base-uncased"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def _stages(epochs: tuple[int, int, int], **settings: Any) -> tuple[StageConfig, ...]:
    losses = (("wtc",), ("wtc", "ttc"), ("wtc", "ttc", "tpc"))
    return tuple(StageConfig(names, epochs=count, **settings) for names, count in zip(losses, epochs, strict=True))


_PAPER = LarpConfig(
    audio=AudioTowerConfig(checkpoint=HTSAT),
    text=TextTowerConfig(checkpoint=BERT),
    loop=LoopConfig(optimiser="adam", betas=(0.9, 0.99), weight_decay=0.0, clip_norm=0.0),
)

PRESETS: dict[str, LarpConfig] = {
    # Section 4.1.3 to the letter (batches of 50 on each of two GPUs: 100 in all), with our reading of the losses.
    "paper": replace(_PAPER, batch_size=100),
    # The same as LARP's published code behaves, where that departs from the paper or from us.
    "reference": replace(
        _PAPER,
        audio=AudioTowerConfig(checkpoint=HTSAT, fixed_norm=False),
        text=TextTowerConfig(checkpoint=BERT, max_tokens=30),
        batch_size=100,
        spread=False,
        targets="diagonal",
        distill=0.4,
        fusion="attention",
        tables="zeros",
    ),
    # Published checkpoints, their encoders frozen: all three stages in minutes on a few cores.
    "cpu": LarpConfig(
        audio=AudioTowerConfig(checkpoint=HTSAT),
        text=TextTowerConfig(checkpoint=BERT),
        freeze=True,
        stages=_stages((10, 15, 15), lr=1e-3, warmup_steps=50, patience=4),
        batch_size=256,
        queue=4096,
        momentum=0.9,
        audio_share=None,
    ),
    # The demo's 240 songs in minutes on two cores.
    "demo": LarpConfig(
        audio=AudioTowerConfig(patch=16, width=64, depths=(1, 1), heads=(4, 8)),
        text=TextTowerConfig(lr_scale=0.1, dropout=0.0),
        stages=_stages((6, 8, 10), lr=1e-3, warmup_steps=10, patience=0),
        batch_size=64,
        queue=0,  # over so few steps the towers drift: telling stale keys from fresh ones is easier than learning
        momentum=0.9,
        audio_share=None,
        loop=LoopConfig(threads=1),  # so that the weights do not depend on how many cores there are, or how busy
    ),
    # About a thousand tracks from scratch: with so little to align, each tower also learns from its own kind (`sides`).
    "small": LarpConfig(
        audio=AudioTowerConfig(patch=16, width=64, depths=(1, 1), heads=(4, 8)),
        text=TextTowerConfig(layers=1, lr_scale=0.1, pooling="mean"),
        stages=_stages((3, 8, 6), lr=1e-3, warmup_steps=10, patience=0),
        batch_size=128,
        sides="all",
        queue=0,
        momentum=0.9,
        audio_share=None,
        validation_draws=20,
        loop=LoopConfig(threads=1, keep_start=True),
    ),
    # A synthetic world's 1,000 training tracks, from scratch in minutes on one core (`make bench-larp`).
    "world": LarpConfig(
        audio=AudioTowerConfig(patch=16, width=64, depths=(1, 1), heads=(4, 8)),
        text=TextTowerConfig(layers=1, lr_scale=0.2, pooling="mean"),
        stages=_stages((5, 12, 5), lr=1e-3, warmup_steps=10, patience=0),
        batch_size=128,
        queue=0,
        momentum=0.9,
        audio_share=None,
        loop=LoopConfig(threads=1),
    ),
    # The smallest towers that learn anything: to try a data set, and in tests.
    "tiny": LarpConfig(
        audio=AudioTowerConfig(patch=16, width=16, depths=(1, 1), heads=(1, 2)),
        text=TextTowerConfig(width=32, layers=1, heads=2, vocabulary=300),
        stages=_stages((2, 2, 2), lr=2e-3, warmup_steps=2, patience=0),
        batch_size=16,
        queue=64,
        momentum=0.9,
        seeds=3,
        validation_draws=3,
        loop=LoopConfig(threads=1),
    ),
    # Metadata alone: a fixed sentence encoder reads each field, its answers are whitened, and their weights learnt.
    "captions": LarpConfig(
        text=TextTowerConfig(checkpoint=MINILM, pooling="mean"),
        towers=("text",),
        freeze=True,
        stages=(StageConfig(("ttc",), epochs=2, lr=0.02, warmup_steps=8, patience=0),),
        caption="fields",
        heads="whitened",
        dims=1152,
        batch_size=1024,
        positives="sum",
        temperature=0.05,
        fixed_temperature=True,
        queue=4096,
        momentum=0.9,
        loop=LoopConfig(optimiser="adam", weight_decay=0.0, clip_norm=0.0),
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
