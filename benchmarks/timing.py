"""How long a call takes: the median of interleaved rounds, so that a busy machine disturbs all calls alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[int], object]


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Call each of `calls` once a round, in changing order, with the round's number; return the median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)  # warm up
    order = list(calls.items())
    shuffle = random.Random(0).shuffle
    for turn in range(rounds):
        shuffle(order)
        for name, call in order:
            began = time.perf_counter()
            call(turn)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def milliseconds(seconds: float) -> str:
    """Return `seconds` as text in ms."""
    return f"{seconds * 1e3:.2f} ms"
