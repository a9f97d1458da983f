"""Arrays that grow at the end while others read them: how the index takes new tracks without a pause."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class GrowingArray:
    """An array [n, ...] whose capacity doubles, so that appending costs O(1) amortised.

    One writer at a time. Readers keep the array that `append` or `view` gave them: its rows never change,
    because a later append writes behind its end or into a fresh, larger block.
    """

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] = (), capacity: int = 16) -> None:
        self._block: NDArray[Any] = np.empty((max(1, capacity), *shape), dtype=dtype)
        self._used = 0

    @classmethod
    def of(cls, values: NDArray[Any]) -> "GrowingArray":
        """Start from `values` [n, ...], which are copied."""
        grown = cls(values.dtype, values.shape[1:], capacity=len(values))
        grown.append(values)
        return grown

    def append(self, values: NDArray[Any]) -> NDArray[Any]:
        """Append `values` [m, ...] and return the array [n + m, ...] with them, read-only."""
        needed = self._used + len(values)
        if needed > len(self._block):
            block = np.empty((max(needed, 2 * len(self._block)), *self._block.shape[1:]), self._block.dtype)
            block[: self._used] = self._block[: self._used]
            self._block = block
        self._block[self._used : needed] = values
        self._used = needed
        return self.view()

    def cut(self, size: int) -> None:
        """Forget what is behind the first `size`; no reader may have it yet."""
        self._used = min(self._used, size)

    def view(self) -> NDArray[Any]:
        """Return what is there now, read-only and without a copy."""
        view = self._block[: self._used]
        view.flags.writeable = False
        return view
