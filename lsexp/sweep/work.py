"""What is left to train of the runs of one or more studies, what it will cost, and training it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lsexp import studies
from lsexp.errors import UserError
from lsexp.launch.hands import Hands, kinds_of, members_of
from lsexp.runs.store import Damaged
from lsexp.text import plural

if TYPE_CHECKING:
    from lsexp.launch.slurm import Jobs


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
    from lsexp.launch.plan import describe_training, stale, steps_done
    from lsexp.launch.teaching import can_teach

    todo: list[tuple[Planned, int | None]] = []
    errors: list[str] = []
    places: dict[int, int] = {}
    begun: dict[Path, int] = {}
    done: list[Any] = []
    failed = again = anew = damaged = outdated = waiting = 0
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
        if folder.finished() and plan.stale():
            outdated += 1
            errors.append(f"{label(run.keys)}: {stale(folder.path)}")
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
    if outdated:
        counts += f", {outdated} stale"
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
        kinds = kinds_of([one.plan for one, _ in todo])
        shares = [
            [1 - begun[plan.folder.path] / plan.config.train.steps for plan in kind]
            for kind in kinds
        ]
        counts += hands.cost([(kind[0], of) for kind, of in zip(kinds, shares, strict=True)])
        if any(one.plan.snapshots or one.plan.teaching for one, _ in todo):
            counts += ", then what is measured of teachers and snapshots"
    told = dict.fromkeys(describe_training(kind[0]) for kind in kinds_of([p.plan for p in planned]))
    return Left(todo, done, errors, "\n".join([*told, f"{name}, {counts}"]))


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
