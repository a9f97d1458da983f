"""The small run that several rooms of tests share: its type."""

from dataclasses import dataclass

from index.release.release import Release
from training.pipeline import Pipeline


@dataclass(frozen=True)
class SmallRun:
    """A finished pipeline over the small data set, the release it published, and the rows left out of it."""

    pipeline: Pipeline
    release: Release
    left_out: list[int]
