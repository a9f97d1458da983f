"""The settings that the tests of LARP's training share: towers that learn in seconds."""

from dataclasses import replace

from training.larp.config import AudioTowerConfig, LarpConfig, TextTowerConfig
from training.larp.presets import larp_preset
from training.loop import LoopConfig

TINY = larp_preset("tiny", clauses=("title", "artist"), batch_size=8, queue=24)
TINY = replace(TINY, loop=LoopConfig(precision="fp32", device="cpu", threads=1))

STEADY = replace(
    TINY,
    audio=AudioTowerConfig(patch=16, width=16, depths=(1, 1), heads=(1, 2), dropout=0.0),
    text=TextTowerConfig(width=32, layers=1, heads=2, vocabulary=300, dropout=0.0),
)
"""Without dropout: what is left to chance is drawn per track, so however a batch is divided it comes out the same."""


def stages_of(config: LarpConfig, epochs: int, *numbers: int) -> LarpConfig:
    """The settings with some of the stages (from 1), of so many epochs."""
    return replace(config, stages=tuple(replace(config.stages[n - 1], epochs=epochs) for n in numbers))
