"""Timing of small calls, for figures that are shown and never judged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


def best_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of some runs of a call, in seconds."""
    seconds = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds
