"""What is left to train of the runs of one or more studies, what it will cost, and training it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lsexp import studies
from lsexp.config import LossConfig, SweepConfig, TrainConfig
from lsexp.text import duration, plural


class Planned(NamedTuple):
    """A run with its plan; after: place, in the same list, of its teacher (None: it has none)."""

    run: studies.Run
    plan: Any
    after: int | None


def joined(rows: Sequence[Sequence[Planned]]) -> list[Planned]:
    """The runs of several recipes or studies, each once, with the most snapshots that are asked."""
    found: list[Planned] = []
    places: dict[Path, int] = {}
    for row in rows:
        of_row: list[int] = []
        for one in row:
            place = places.setdefault(one.plan.folder.path, len(found))
            of_row.append(place)
            if place == len(found):
                after = None if one.after is None else of_row[one.after]
                found.append(one._replace(after=after))
            elif len(one.plan.snapshots) > len(found[place].plan.snapshots):
                found[place] = found[place]._replace(plan=one.plan)
    return found


@dataclass
class Left:
    """What is left to do.

    Attributes:
        todo: runs to train, each with the place, in the same list, of the run to wait for.
        errors: a line for each run that failed before and is left so.
        text: what is finished, what is to do and about how long it takes.
    """

    todo: list[tuple[Planned, int | None]]
    errors: list[str]
    text: str


def left_of(name: str, planned: Sequence[Planned], workers: int, *, retry: bool) -> Left:
    """What is left of runs that are each there once.

    Args:
        name: of the work, for the text.
        retry: whether runs that failed before are trained again.
    """
    from lsexp.launch.plan import describe_training, seconds_of_training, steps_done
    from lsexp.launch.teaching import can_teach

    todo: list[tuple[Planned, int | None]] = []
    errors: list[str] = []
    places: dict[int, int] = {}
    begun: dict[Path, int] = {}
    done = failed = again = anew = 0
    for place, (run, plan, after) in enumerate(planned):
        folder = plan.folder
        if plan.done():
            done += 1
            continue
        failure = folder.failure()
        failed += failure is not None
        if failure is not None and not retry:
            errors.append(f"{label(run.keys)}: failed before: {failure.get('error')}")
            continue
        if after is not None and can_teach(plan):
            after = None  # whatever else is asked of the teacher
        elif after is not None and after not in places:
            of = label(planned[after].run.keys)
            errors.append(f"{label(run.keys)}: its teacher failed before ({of})")
            continue
        begun[folder.path] = steps_done(plan)
        again += folder.finished() and bool(plan.lacking(folder.path))
        anew += bool(folder.checkpoints()) and not begun[folder.path]
        places[place] = len(todo)
        todo.append((planned[place], None if after is None else places[after]))
    counts = f"{plural(len(planned), 'run')}: {done} finished"
    if failed:
        counts += f", {failed} failed" + ("" if retry else " (retry_failed=true tries again)")
    counts += f", {len(todo)} to do"
    if again:
        counts += f" ({again} of them again, aside: finished without snapshots)"
    if anew:
        counts += f" ({anew} of them begin again: interrupted without snapshots)"
    if todo:
        seconds = sum(
            seconds_of_training(kind[0])
            * sum(1 - begun[plan.folder.path] / plan.config.train.steps for plan in kind)
            for kind in _kinds([one.plan for one, _ in todo])
        ) / min(workers, len(todo))
        counts += f", about {duration(seconds)} with {plural(workers, 'worker')}, evaluation apart"
        if any(one.plan.snapshots or one.plan.teaching for one, _ in todo):
            counts += ", then what is measured of teachers and snapshots"
    told = dict.fromkeys(describe_training(kind[0]) for kind in _kinds([p.plan for p in planned]))
    return Left(todo, errors, "\n".join([*told, f"{name}, {counts}"]))


def _kinds(plans: Sequence[Any]) -> list[list[Any]]:
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


def train(
    pool: Any,
    work: Sequence[tuple[Planned, int | None]],
    command: list[str],
) -> tuple[list[str], str]:
    """Train in the pool; one line for each failure, and the signal that stopped it or ""."""
    from lsexp.launch.plan import steps_done
    from lsexp.launch.pool import Task
    from lsexp.launch.progress import SweepView

    tasks = [
        Task(plan.config, plan.chosen, command, label(run.keys), after=after)
        for (run, plan, _), after in work
    ]
    steps = [one.plan.config.train.steps for one, _ in work]
    done = [steps_done(one.plan) for one, _ in work]
    with SweepView([task.label for task in tasks], steps, done) as view:
        outcomes, stopped = pool.train(tasks, view)
    errors = [
        f"{task.label}: {outcome.error}"
        for task, outcome in zip(tasks, outcomes, strict=True)
        if outcome is not None and outcome.error is not None
    ]
    return errors, stopped


def label(keys: dict[str, Any]) -> str:
    """A run as it is called on the screen."""
    return " ".join(
        f"{name}={f'{value:.12g}' if isinstance(value, float) else value}"
        for name, value in keys.items()
        if value is not None
    )


def workers_for(config: SweepConfig, base: TrainConfig, runs: int) -> tuple[int, int]:
    """Worker processes, and threads in each: a core for every thread."""
    from lsexp.training.hardware import default_threads, resolve_device

    threads = base.threads or 1
    on_gpu = resolve_device(base.device).type == "cuda"
    most = 1 if on_gpu else max(1, default_threads() // threads)
    return min(config.workers or most, runs), threads
