"""Two hundred runs in one sweep: what the parent holds does not grow with them."""

import time

import psutil
import pytest
from faults.harness import TIMES, runs
from support import TINY, lsexp

SEEDS = 100
MOST_MEMORY, MOST_FILES = 20e6, 2
"""Bytes and open files by which the parent may grow from a fifth of the runs to the last."""


@pytest.mark.skipif(TIMES < 2, reason="takes minutes; `make faults` runs it")
def test_the_parent_of_a_long_sweep_does_not_grow(tmp_path, happened):
    words = ["sweep", "eps", *TINY, "workers=2", "eps=0,0.1", f"seeds={SEEDS}"]
    process = lsexp(*words, cwd=tmp_path, start=True)
    parent, held = psutil.Process(process.pid), {}
    deadline = time.monotonic() + 900
    while process.poll() is None and time.monotonic() < deadline:
        done = len(list(tmp_path.glob("runs/*/metrics.json")))
        if SEEDS * 2 / 5 <= done < SEEDS * 2:
            held[done] = parent.memory_info().rss, parent.num_fds()
        time.sleep(0.2)
    assert process.wait(60) == 0
    assert len(runs(tmp_path)) == 2 * SEEDS
    (memory, files), (later, more) = held[min(held)], held[max(held)]
    print(f"{min(held)} to {max(held)} runs: {memory / 1e6:.1f} to {later / 1e6:.1f} MB, ", end="")
    print(f"{files} to {more} open files")
    happened("soak: 200 runs in one sweep")
    assert later - memory < MOST_MEMORY
    assert more - files <= MOST_FILES
