"""What is left to train of the runs of one or more studies, what it will cost, and training it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lsexp import studies
from lsexp.config import FOREIGN, LossConfig, SweepConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.runs.store import Damaged
from lsexp.text import duration, plural

if TYPE_CHECKING:
    from lsexp.launch.slurm import Jobs

MEMBERS = 8
"""Runs at once on a GPU where its memory has room for more: by then they fill it."""


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
                continue
            more, known = one.plan.snapshots, found[place].plan.snapshots
            if set(more) > set(known):
                found[place] = found[place]._replace(plan=one.plan)
            elif not set(more) <= set(known):
                counts = [p.config.artifacts.snapshots for p in (found[place].plan, one.plan)]
                raise UserError(
                    f"artifacts.snapshots={counts[1]}: another study has {counts[0]} of the same "
                    f"run, at other steps; give all of them one number, or train them apart"
                )
    return found


@dataclass
class Left:
    """What is left to do.

    Attributes:
        todo: runs to train, each with the place, in the same list, of the run to wait for.
        done: plans of the runs that are finished.
        errors: a line for each run that failed before and is left so.
        text: what is finished, what is to do and about how long it takes.
    """

    todo: list[tuple[Planned, int | None]]
    done: list[Any]
    errors: list[str]
    text: str


def left_of(name: str, planned: Sequence[Planned], hands: Hands | Jobs, *, retry: bool) -> Left:
    """What is left of runs that are each there once.

    Args:
        name: of the work, for the text.
        hands: who will train.
        retry: whether runs that failed before are trained again.
    """
    from lsexp.launch.plan import describe_training, steps_done
    from lsexp.launch.teaching import can_teach

    todo: list[tuple[Planned, int | None]] = []
    errors: list[str] = []
    places: dict[int, int] = {}
    begun: dict[Path, int] = {}
    done: list[Any] = []
    failed = again = anew = damaged = waiting = 0
    for place, (run, plan, after) in enumerate(planned):
        folder = plan.folder
        try:
            finished = plan.done()
        except Damaged as error:
            damaged += 1
            errors.append(f"{label(run.keys)}: {error}")
            continue
        if finished:
            done.append(plan)
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
            waiting += 1
            continue
        begun[folder.path] = steps_done(plan)
        again += folder.finished() and bool(plan.lacking(folder.path))
        anew += bool(folder.checkpoints()) and not begun[folder.path]
        places[place] = len(todo)
        todo.append((planned[place], None if after is None else places[after]))
    counts = f"{plural(len(planned), 'run')}: {len(done)} finished"
    if damaged:
        counts += f", {damaged} damaged"
    if failed and not retry:
        counts += f", {failed} failed (retry_failed=true tries again)"
    if waiting:
        counts += f", {waiting} {'has' if waiting == 1 else 'have'} no teacher for that"
    counts += f", {len(todo)} to do"
    if failed and retry:
        counts += f" ({failed} of them failed before)"
    if again:
        counts += f" ({again} of them again, aside: finished without snapshots)"
    if anew:
        asked = planned[0].plan.config.resume == "restart"
        why = "resume=restart" if asked else "interrupted without snapshots"
        counts += f" ({anew} of them begin again: {why})"
    if todo:
        kinds = _kinds([one.plan for one, _ in todo])
        shares = [
            [1 - begun[plan.folder.path] / plan.config.train.steps for plan in kind]
            for kind in kinds
        ]
        counts += hands.cost([(kind[0], of) for kind, of in zip(kinds, shares, strict=True)])
        if any(one.plan.snapshots or one.plan.teaching for one, _ in todo):
            counts += ", then what is measured of teachers and snapshots"
    told = dict.fromkeys(describe_training(kind[0]) for kind in _kinds([p.plan for p in planned]))
    return Left(todo, done, errors, "\n".join([*told, f"{name}, {counts}"]))


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
    hands: Hands | Jobs,
) -> tuple[list[str], str]:
    """Train in the pool; one line for each failure, and the signal that stopped it or ""."""
    from lsexp.launch.local import begin_again
    from lsexp.launch.plan import steps_done
    from lsexp.launch.pool import Task
    from lsexp.launch.progress import SweepView

    tasks = [
        Task(begin_again(plan).config, plan.chosen, command, label(run.keys), after=after)
        for (run, plan, _), after in work
    ]
    steps = [one.plan.config.train.steps for one, _ in work]
    done = [steps_done(one.plan) for one, _ in work]
    with SweepView([task.label for task in tasks], steps, done) as view:
        members = (
            members_of([one.plan for one, _ in work], hands) if isinstance(hands, Hands) else 1
        )
        outcomes, stopped = pool.train(tasks, view, members=members)
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

        runs = [seconds_of_training(plan) * share for plan, shares in kinds for share in shares]
        # More workers than cores are no faster together.
        cores = default_threads() // self.threads if self.members == 1 else self.workers
        ends = [0.0] * max(1, min(self.workers, cores))
        for seconds in sorted(runs, reverse=True):  # each to whoever is free first
            ends[ends.index(min(ends))] += seconds
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

    free, needed = device_memory([kind[0] for kind in _kinds(plans)])
    return max(1, min(MEMBERS, len(plans), int(free // (hands.workers * needed))))
