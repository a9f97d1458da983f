"""Exported ONNX models, run by OpenVINO on the CPU in float32. The one place that imports OpenVINO.

`import openvino` sends a usage report to its maker (`openvino.tools.ovc` does, through openvino_telemetry,
without asking); hiding that package makes it take the stub it ships with. Nothing here leaves the machine.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import DebutError

if "openvino" not in sys.modules:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino

_REQUESTS = 4  # inferences at once; each holds its own activations


class ModelError(DebutError):
    """A model of the release that cannot be loaded, or that does not fit its configuration."""

    code = "model_damaged"


@cache
def _core() -> Any:
    """The one Core of this process, which is never let go.

    OpenVINO gives the thread that makes the first Core an alternate signal stack, and unmaps that with the Core, on
    whichever thread it ends: the next signal (SIGTERM, SIGHUP) then kills the process.
    """
    return openvino.Core()


class OnnxModel:
    """One ONNX model with one output, "vector". Safe to use from many threads: requests are pooled."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Compile `path` for `threads` CPU threads (None: as many as the process may use).

        Raises ModelError when the file is missing or is no model that OpenVINO can read.
        """
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._model = _core().compile_model(str(path), "CPU", config)
            self.dims = int(self._model.output("vector").partial_shape[1].get_length())
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{path} is no usable model ({reason}); publish the release again") from error
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._free = threading.Semaphore(_REQUESTS)

    @property
    def inputs(self) -> set[str]:
        """Names of the model's inputs."""
        return {port.get_any_name() for port in self._model.inputs}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Infer: named input arrays -> "vector" f32 [batch, dims]."""
        with self._request() as request:
            request.infer(dict(inputs), share_inputs=True)
            vector: NDArray[np.float32] = request.get_tensor("vector").data.copy()
            return vector

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """A request of the pool, made when none is idle; waits while all are busy."""
        with self._free:
            try:
                request = self._idle.get_nowait()
            except Empty:
                request = self._model.create_infer_request()
            try:
                yield request
            finally:
                self._idle.put(request)
