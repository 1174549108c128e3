"""When to keep the weights on the way: densely at first, where most happens, then evenly."""

from __future__ import annotations

import numpy as np


def snapshot_steps(steps: int, count: int) -> list[int]:
    """Steps after which weights are kept, the start among them, the end not: it is kept anyway.

    With the end there are `count` of them, fewer where steps are too few. A third of those behind
    the start are spaced by equal factors, up to the first of the others, which are spaced evenly.

    >>> snapshot_steps(64_000, 17)
    [0, 1, 6, 32, 181, 1028, 5818, 11636, 17455, ...]
    """
    if count < 2:
        return []
    early = (count - 1) // 3
    even = np.linspace(0, steps, count - early)[1:]
    first = np.geomspace(1, even[0], early + 1)[:-1]
    found = {0, *(round(float(step)) for step in (*first, *even))}
    return sorted(found - {steps})
