"""Who trains a sweep: how many processes, each with how many threads and runs at once, and what
that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lsexp.config import FOREIGN, LossConfig, SweepConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.text import duration, plural

MEMBERS = 8
"""Runs at once on a GPU where its memory has room for more: by then they fill it."""


class Hands(NamedTuple):
    """Who trains a sweep: worker processes, CPU threads in each, and runs that each trains at once
    (None: on a GPU, as many as there is room for)."""

    workers: int
    threads: int
    members: int | None

    def cost(self, kinds: Sequence[tuple[Any, Sequence[float]]]) -> str:
        """About how long it will take.

        Args:
            kinds: of runs that cost the same: one's plan, and how much of a whole run is left of
                each.
        """
        from lsexp.launch.plan import seconds_of_training
        from lsexp.training.hardware import default_threads

        runs: list[float] = []
        for plan, shares in kinds:
            seconds = seconds_of_training(plan)  # measured once for all of a kind
            runs += [seconds * share for share in shares]
        # More workers than cores are no faster together.
        cores = default_threads() // self.threads if self.members == 1 else self.workers
        ends = [0.0] * max(1, min(self.workers, cores))
        for run in sorted(runs, reverse=True):  # each to whoever is free first
            ends[ends.index(min(ends))] += run
        most = "about" if self.members == 1 else "at most"  # together they take less
        return f", {most} {duration(max(ends))} with {self}, evaluation apart"

    def __str__(self) -> str:
        if self.members == 1:
            return plural(self.workers, "worker")
        at_once = "several" if self.members is None else f"{self.members}"
        return f"{plural(self.workers, 'worker')}, {at_once} runs at once in each"


def hands_for(config: SweepConfig, base: TrainConfig, runs: int) -> Hands:
    """A core for every thread; on a GPU, one process for all.

    Raises:
        UserError: several members where they cannot be.
    """
    from lsexp.training.hardware import default_threads, resolve_device

    threads = base.threads or 1
    on_gpu = resolve_device(base.device).type == "cuda"
    foreign = isinstance(base.model, FOREIGN)
    if (config.members or 1) > 1 and (foreign or not on_gpu):
        why = (
            "networks that are not ours draw from a generator that a process has once"
            if foreign
            else "a process trains several runs at once on a GPU only"
        )
        raise UserError(f"members={config.members}: {why}; workers= trains with more processes")
    most = 1 if on_gpu else max(1, default_threads() // threads)
    members = config.members if on_gpu and not foreign else 1
    return Hands(min(config.workers or most, runs), threads, members)


def _teacher(plan: Any) -> TrainConfig | None:
    return None if plan.teaching is None else plan.teaching.config


def members_of(plans: Sequence[Any], hands: Hands) -> int:
    """Runs that a worker trains at once: MEMBERS on a GPU, or as many as its memory has room for.

    Measured with a run of the kind that needs most.
    """
    models = [one.model for plan in plans for one in (plan.config, _teacher(plan)) if one]
    if any(isinstance(model, FOREIGN) for model in models):
        return 1  # they draw from a generator that a process has once
    if hands.members is not None:
        return hands.members
    from lsexp.launch.plan import device_memory

    free, needed = device_memory([kind[0] for kind in kinds_of(plans)])
    return max(1, min(MEMBERS, len(plans), int(free // (hands.workers * needed))))


def kinds_of(plans: Sequence[Any]) -> list[list[Any]]:
    """Plans that cost the same, together: they differ in seed and in the numbers of their loss."""
    found: list[tuple[Any, list[Any]]] = []
    for plan in plans:
        like = replace(plan.config, loss=LossConfig(), seed=0), plan.teaching is None
        for other, kind in found:
            if other == like:
                kind.append(plan)
                break
        else:
            found.append((like, [plan]))
    return [kind for _, kind in found]
