"""Where the time of a recipe's training step goes: one thread, torch's profiler.

    python scripts/bench/profile_step.py RECIPE [key=value ...]

Prints images/s without the profiler, page faults a step, and the operations that take most time,
each with its share and calls a step.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time

from torch.profiler import ProfilerActivity, profile

from lsexp import compose
from lsexp.launch.plan import plan
from lsexp.training.member import step

SECONDS = 4.0
STEPS = 10


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main(recipe: str, *words: str) -> None:
    with tempfile.TemporaryDirectory() as runs:
        [(config, chosen)] = compose.train_configs(
            [f"recipe={recipe}", "threads=1", f"runs_dir={runs}", *words]
        )
        planned = plan(config, chosen, ["profile"])
    member = planned.member(planned.images("train"))
    for _ in range(3):
        step(member)
    before, began, done = faults(), time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        member.reset_sums()
        step(member)
        done += 1
    elapsed = time.perf_counter() - began
    batch = config.train.batch_size
    print(
        f"{recipe} {planned.config.precision}: {done * batch / elapsed:,.0f} images/s, "
        f"{1000 * elapsed / done:.2f} ms a step, {(faults() - before) / done:,.0f} page faults"
    )
    with profile(activities=[ProfilerActivity.CPU], record_shapes=False) as found:
        for _ in range(STEPS):
            member.reset_sums()
            step(member)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:22]:
        share = 100 * event.self_cpu_time_total / total
        each = event.self_cpu_time_total / 1000 / STEPS
        print(f"{share:5.1f} %  {each:8.3f} ms  {event.count / STEPS:6.1f} x  {event.key}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
