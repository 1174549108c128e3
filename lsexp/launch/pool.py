"""Many runs at once on this machine: worker processes, supervised one by one.

A worker is a process that lives for the whole sweep, so that PyTorch is imported once in each,
and trains one run after another with `local.execute`: claims, checkpoints and publishing are
those of a run alone, and so are its weights. On a GPU a worker is a bank: it trains several runs
at once, each in a thread with a stream of its own. The parent only hands out runs and listens. A
worker that dies takes nothing with it: its runs go on in a new one. Where the parent dies, its
workers stop with a checkpoint.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from lsexp.config import SweepConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.processes import caught_signals
from lsexp.text import say
from lsexp.training.history import EpochRow

if TYPE_CHECKING:
    from lsexp.launch.plan import Plan, Planner

DEATHS = 3
"""A run whose worker died this many times is given up: it may be what kills them."""
STOP_SECONDS = 300.0
"""How long a worker may take to stop: where its run ends just then, it publishes it first."""
MOST_MEMBERS: int = next(
    item.metadata["bounds"]["at_most"] for item in fields(SweepConfig) if item.name == "members"
)
"""Runs that a worker can train at once; as many streams does torch tell apart."""
PROCESSES: Any = multiprocessing.get_context("spawn")
"""How workers start. A fork would copy locks that threads of the parent hold, and has no CUDA."""
AGAIN_SECONDS = 1.0
"""Pause before a run that another process trains is looked at again."""


@dataclass
class Task:
    """A run to train: what `plan` takes, and what it is called on the screen.

    after: index of the task that trains its teacher; None: it has none, or one that is finished.
    """

    config: TrainConfig
    chosen: dict[str, str]
    command: list[str]
    label: str
    deaths: int = 0
    after: int | None = None


@dataclass
class Outcome:
    """How a task ended: `metrics` of a finished run, else the `error` in one line."""

    metrics: dict[str, Any] | None = None
    error: str | None = None


class Screen(Protocol):
    """What the pool tells while it works; `task` is the index of a run."""

    def start(self, task: int) -> None: ...
    def look(self, task: int, step: int, loss: float, images_per_second: float) -> None: ...
    def epoch(self, task: int, row: EpochRow) -> None: ...
    def end(self, task: int, outcome: Outcome | None) -> None:
        """It ended, or was put back (None)."""

    def say(self, message: str) -> None: ...


class _Worker:
    """The parent's side of a worker. tasks: what it trains."""

    def __init__(self, threads: int):
        self.connection, theirs = PROCESSES.Pipe()
        self.process: BaseProcess = PROCESSES.Process(
            target=_work, args=(theirs, os.getpid()), daemon=True, name="lsexp-worker"
        )
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # what is imported there reads it
        resource_tracker.ensure_running()  # whose own start would lift the block that follows
        # Until it ignores SIGINT itself: a terminal tells all processes of Ctrl-C.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()
        self.tasks: set[int] = set()

    def give(self, number: int, task: Task, *, wait: bool) -> bool:
        """Whether it could be given: a worker that has just died takes nothing."""
        try:
            self.connection.send((number, task, wait))
        except OSError:
            return False
        self.tasks.add(number)
        return True

    def takes(self, number: int, tasks: Sequence[Task], members: int) -> bool:
        """Whether it has room for a run. One whose worker has died goes on alone in another, so
        that it takes no others with it if it was the cause."""
        alone = any(tasks[one].deaths for one in (number, *self.tasks))
        return len(self.tasks) < (1 if alone else members)

    def stop(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(self.process.pid, number)  # type: ignore[arg-type]


class Pool:
    """Workers that start importing when this is made, so that the parent can plan meanwhile."""

    def __init__(self, workers: int, threads: int):
        self.threads = threads
        self._workers = [_Worker(threads) for _ in range(workers)]

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        busy = [worker for worker in self._workers if worker.tasks]
        for worker in busy:  # only where something went wrong here: they make a checkpoint
            worker.stop(signal.SIGTERM)
        for worker in self._workers:
            worker.connection.close()  # an idle worker ends by that
        deadline = time.monotonic() + (STOP_SECONDS if busy else 2)
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def train(
        self,
        tasks: Sequence[Task],
        screen: Screen,
        *,
        members: int = 1,
        signals: list[str] | None = None,
    ) -> tuple[list[Outcome | None], str]:
        """Train all tasks.

        Args:
            members: runs that a worker trains at once; above 1 only on a GPU.
            signals: names of those that stop it, as they come; None: those of this process.

        Returns:
            The outcome of each (None: not ended), and why the work stopped before its end: the
            name of a signal, `"SIGINT twice"` where workers were killed without a checkpoint, or
            "".
        """
        outcomes: list[Outcome | None] = [None] * len(tasks)
        todo = deque(range(len(tasks)))
        elsewhere: deque[int] = deque()  # trained by other processes when last looked at
        seen_elsewhere: set[int] = set()
        again = 0.0
        caught = caught_signals() if signals is None else contextlib.nullcontext(signals)
        with caught as signals:
            asked = killed = False
            while True:
                busy = [worker for worker in self._workers if worker.tasks]
                if signals:
                    if not busy:
                        return outcomes, "SIGINT twice" if killed else signals[0]
                    impatient = signals.count("SIGINT") > 1
                    if not asked or (impatient and not killed):
                        for worker in busy:
                            worker.stop(signal.SIGKILL if impatient else signal.SIGTERM)
                        asked, killed = True, impatient
                elif not todo and not elsewhere and not busy:
                    break
                else:
                    give_up(tasks, outcomes, todo, screen)
                    ready = _ready(tasks, outcomes, todo)
                    if not ready and elsewhere and time.monotonic() >= again:
                        todo.extendleft(reversed(elsewhere))
                        seen_elsewhere |= set(elsewhere)
                        ready, elsewhere = _ready(tasks, outcomes, todo), deque()
                        again = time.monotonic() + AGAIN_SECONDS
                    for worker in [one for _ in range(members) for one in self._workers]:
                        if len(worker.tasks) >= members:
                            continue
                        fitting = (n for n in ready if worker.takes(n, tasks, members))
                        if (number := next(fitting, None)) is not None:
                            ready.remove(number)
                            todo.remove(number)
                            # Who has nothing else to do waits there: only somebody who watches
                            # for long sees that another machine has given up.
                            waiting = number in seen_elsewhere and all(
                                n in seen_elsewhere or tasks[n].after in seen_elsewhere
                                for n in todo
                            )
                            if worker.give(number, tasks[number], wait=waiting):
                                screen.start(number)
                            else:
                                todo.appendleft(number)
                                ready.appendleft(number)
                self._listen(tasks, outcomes, todo, elsewhere, screen, stopping=bool(signals))
        return outcomes, signals[0] if signals else ""

    def _listen(
        self,
        tasks: Sequence[Task],
        outcomes: list[Outcome | None],
        todo: deque[int],
        elsewhere: deque[int],
        screen: Screen,
        *,
        stopping: bool,
    ) -> None:
        """Take in what workers tell for a moment; replace those that died."""
        connections = [worker.connection for worker in self._workers]
        ready = wait(connections, timeout=0.2)
        for place, worker in enumerate(self._workers):
            if worker.connection not in ready:
                continue
            try:
                kind, number, *values = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                self._workers[place] = worker if stopping else _Worker(self.threads)
                if stopping:
                    self._workers.remove(worker)
                for number in sorted(worker.tasks, reverse=True):
                    self._died(worker, tasks, number, outcomes, todo, screen, stopping=stopping)
                worker.tasks.clear()
                return  # the list of workers has changed
            if kind == "say":
                screen.say(*values)
            elif kind == "look":
                screen.look(number, *values)
            elif kind == "epoch":
                screen.epoch(number, *values)
            else:
                worker.tasks.remove(number)
                if kind == "elsewhere":
                    elsewhere.append(number)
                elif kind == "stopped":  # by somebody else than us, it goes on
                    todo.append(number)
                elif kind == "finished":
                    outcomes[number] = Outcome(metrics=values[0])
                elif kind == "alone" and not tasks[number].deaths:
                    # The others may have had the memory; alone it has all of it.
                    tasks[number].deaths += 1
                    screen.say(f"{values[0]}; it goes on alone")
                    todo.appendleft(number)
                else:
                    outcomes[number] = Outcome(error=values[0])
                screen.end(number, outcomes[number])

    def _died(
        self,
        worker: _Worker,
        tasks: Sequence[Task],
        number: int,
        outcomes: list[Outcome | None],
        todo: deque[int],
        screen: Screen,
        *,
        stopping: bool,
    ) -> None:
        task, code = tasks[number], worker.process.exitcode or 0
        task.deaths += 1
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if stopping:
            pass
        elif task.deaths < DEATHS:
            alone = ", alone" if len(worker.tasks) > 1 else ""
            screen.say(f"{task.label}: its worker ended {how}; the run goes on in another{alone}")
            todo.appendleft(number)
        else:
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            outcomes[number] = Outcome(
                error=f"its worker ended {how}{memory}, {DEATHS} times; "
                f"`lsexp train` of this run alone may tell more"
            )
        screen.end(number, outcomes[number])


def _ready(
    tasks: Sequence[Task], outcomes: Sequence[Outcome | None], todo: deque[int]
) -> deque[int]:
    """Those of `todo` whose teacher is trained."""
    afters = ((number, tasks[number].after) for number in todo)
    return deque(n for n, after in afters if after is None or outcomes[after] is not None)


def give_up(
    tasks: Sequence[Task], outcomes: list[Outcome | None], todo: deque[int], screen: Screen
) -> None:
    """Students whose teacher has failed."""
    for number in list(todo):
        after = tasks[number].after
        if after is None:
            continue
        ended = outcomes[after]
        if ended is not None and ended.error is not None:
            todo.remove(number)
            outcomes[number] = Outcome(error=f"its teacher failed ({tasks[after].label})")
            screen.end(number, outcomes[number])


# The worker's side.


class _Told:
    """What `execute` shows of a run goes to the parent."""

    def __init__(self, send: Callable[..., None], number: int):
        self.send = send
        self.number = number

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def look(self, step: int, loss: float, images_per_second: float, _batch_size: int) -> None:
        self.send("look", self.number, step, loss, images_per_second)

    def epoch(self, row: EpochRow) -> None:
        self.send("epoch", self.number, row)


class _Lines:
    """A stream whose lines go to the parent, which shares its terminal with a display."""

    def __init__(self, send: Callable[..., None]):
        self.send = send
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self.send("say", None, line)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def _work(connection: Connection, parent: int) -> None:
    """Train what comes through `connection` until it closes."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):  # the last: of Slurm
        signal.signal(number, signal.SIG_IGN)  # the parent decides for all
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # a queue for each member's stream
    lock = threading.Lock()

    def send(*message: Any) -> None:
        with lock, contextlib.suppress(OSError):  # the parent is gone: the watch will tell
            connection.send(message)

    sys.stderr = sys.stdout = _Lines(send)
    # Now, so that all runs are trained by the code of one moment.
    from lsexp.launch import local  # noqa: F401

    _Work(connection, send).serve()


class _Work:
    """What a worker does: one run after the other, or several at once on a GPU."""

    def __init__(self, connection: Connection, send: Callable[..., None]):
        self.connection = connection
        self.send = send
        self.planning = threading.Lock()
        self.planner: Planner | None = None
        self.running: list[tuple[Future[None], list[str]]] = []

    def serve(self) -> None:
        members = ThreadPoolExecutor(MOST_MEMBERS, thread_name_prefix="lsexp-member")
        while True:
            try:
                number, task, waiting = self.connection.recv()
            except (EOFError, OSError):
                members.shutdown()
                return
            if self._on_gpu(task.config):
                signal.signal(signal.SIGTERM, self._stop)
                signals: list[str] = []
                given = members.submit(self._member, number, task, waiting, signals)
                running = [one for one in self.running if not one[0].done()]
                self.running = [*running, (given, signals)]
            else:
                self.train(number, task, waiting)

    def _on_gpu(self, config: TrainConfig) -> bool:
        from lsexp.training.hardware import resolve_device

        try:
            return resolve_device(config.device).type == "cuda"
        except UserError:  # told where it is planned
            return False

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Only the main thread of a process is told of signals; it tells the members that run."""
        for _, signals in self.running:
            signals.append("SIGTERM")

    def _member(self, number: int, task: Task, waiting: bool, signals: list[str]) -> None:
        """`train` in a thread, where nobody would see what escapes: the process ends, and others
        take over."""
        try:
            self.train(number, task, waiting, signals)
        except BaseException as error:
            say(f"{task.label}: {type(error).__name__}: {error}")
            os._exit(1)

    def train(
        self, number: int, task: Task, waiting: bool, signals: list[str] | None = None
    ) -> None:
        """Train a run and tell how it ended; `signals` stop it, None: those of this process."""
        import torch

        from lsexp.launch import local

        try:
            with self.planning:
                planned = self._plan(task)
            metrics = local.execute(
                planned, wait=waiting, view=lambda **_: _Told(self.send, number), signals=signals
            )
            told: tuple[Any, ...] = ("finished", metrics)
        except local.Elsewhere:
            told = ("elsewhere",)
        except local.Stopped:
            told = ("stopped",)
        except local.OutOfMemory as error:
            told = ("alone" if signals is not None else "failed", str(error))
        except UserError as error:
            told = ("failed", str(error))
        except torch.AcceleratorError as error:
            # The device is lost to this process, and so to all its members: others go on.
            say(f"{task.label}: {error}")
            os._exit(1)
        except Exception as error:
            # Of ours, or of a user's network: its failure.json has the traceback.
            say(f"{task.label}: {type(error).__name__}: {error}")
            told = ("failed", f"{type(error).__name__}: {error}")
        self.send(told[0], number, *told[1:])

    def _plan(self, task: Task) -> Plan:
        from lsexp.launch import plan

        if self.planner is None:
            self.planner = plan.Planner(task.chosen, task.command)
        found = self.planner(task.config)
        return replace(found, chosen=task.chosen, command=task.command)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)  # an idle one ends, a run makes a checkpoint
    time.sleep(STOP_SECONDS)
    os._exit(1)
