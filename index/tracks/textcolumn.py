"""A column of strings that stays in Arrow's buffers: less memory than Python strings, quick to look up."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class TextColumn:
    """Strings by row, None for null. Immutable."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.cast(pa.large_string()).combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # no rows, no chunks
            array = pa.array([], pa.large_string())
        self._array = array
        _, offsets, data = array.buffers()
        begin = array.offset
        self._offsets: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        if len(array):
            self._offsets = np.frombuffer(offsets, dtype=np.int64)[begin : begin + len(array) + 1]
        self._data = memoryview(data) if data is not None else memoryview(b"")
        self._known: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)

    def __getitem__(self, row: int) -> str | None:
        if not self._known[row]:
            return None
        return str(self._data[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def __len__(self) -> int:
        return len(self._known)

    def to_list(self) -> list[str | None]:
        """Return all values."""
        values: list[str | None] = self._array.to_pylist()
        return values

    def joined(self) -> tuple[str, NDArray[np.int64]]:
        """Return all values, one behind the other, and how many characters each has, i64 [n]; 0 for null."""
        lengths = pc.utf8_length(self._array).fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return str(self._data[self._offsets[0] : self._offsets[-1]], "utf-8"), lengths

    def encoded(self) -> tuple[NDArray[np.int64], list[str]]:
        """Return codes i64 [n], 0 for null, and the distinct values: code c is values[c - 1]."""
        found = self._array.dictionary_encode()
        codes = found.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False) + 1
        return codes, found.dictionary.to_pylist()
