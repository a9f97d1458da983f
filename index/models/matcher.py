"""Tracks -> vectors of the matching space, by BCL's exported encoder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from index.models.fields import FieldSet
from index.models.onnxmodel import ModelError, OnnxModel
from index.tracks.track import Track

_BATCH = 1024


class Matcher:
    """The encoder and its fields. Safe to use from many threads."""

    def __init__(self, directory: Path, threads: int | None) -> None:
        try:
            self.fields = FieldSet.from_json((directory / "fields.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{directory / 'fields.json'} cannot be read ({error}); publish the release again"
            ) from error
        self._model = OnnxModel(directory / "matcher.onnx", threads)
        if self._model.inputs != set(self.fields.inputs):
            raise ModelError(
                f"{directory}: matcher.onnx reads {sorted(self._model.inputs)} and fields.json gives "
                f"{sorted(self.fields.inputs)}; publish the release again"
            )

    @classmethod
    def open(cls, directory: Path, threads: int | None = None) -> Self:
        """Load the matcher/ folder of a release; None threads for all CPUs. Raises ModelError and FieldsError."""
        return cls(directory, threads)

    @property
    def dims(self) -> int:
        """Width of the vectors: BCL's and their content's, 256 as a rule."""
        return self._model.dims

    def vectors(self, tracks: Sequence[Track], vectors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Unit vectors f32 [N, dims] of N tracks.

        `vectors` holds those of the LARP towers that fields read ("audio", "text", "lyrics"): f32 [N, 256],
        a row of NaN where a track has none. Raises FieldsError when they do not fit.
        """
        matching = np.empty((len(tracks), self.dims), dtype=np.float32)
        for start in range(0, len(tracks), _BATCH):
            rows = slice(start, start + _BATCH)
            arrays = self.fields.transform(tracks[rows], {name: part[rows] for name, part in vectors.items()})
            matching[rows] = self._model.run(arrays)
        return matching
