"""Many runs at once on a cluster: the tasks of a sweep as an array of Slurm jobs, by submitit.

Every job has all tasks and is nothing more than the pool of this machine, on its node: claims share
the runs out, students wait for their teachers as they do here, and a job that ends early, is killed
or comes late changes nothing of what is trained. What the jobs have done is read from the run
folders. slurm.md, beside this file, has a worked example.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lsexp import files
from lsexp.config import FOREIGN, SlurmConfig, TrainConfig, walk
from lsexp.data.sources import data_folder
from lsexp.errors import UserError
from lsexp.launch.plan import Plan, seconds_of_training
from lsexp.launch.pool import Outcome, Pool, Screen, Task, give_up
from lsexp.processes import caught_signals
from lsexp.runs import claims
from lsexp.runs.store import runs_folder
from lsexp.text import duration, plural, say
from lsexp.training.history import EpochRow

FOLDER = ".slurm"
"""In the folder of runs: what Slurm and submitit write."""
TOO_OFTEN = "timed-out too many times"
"""In the log of a job whose requeues are used up: submitit's words."""
DETACHED = "--detach"
"""Why the work stopped here: nobody waits for the jobs."""
PATIENCE_SECONDS = 90.0
"""With a queue that does not answer, and with folders of runs that a network file system shows late
when no job is there any more."""
MOST_POLL_SECONDS = 20.0
"""Between two looks at the queue and at the run folders, later on; at first they are shorter."""
MOST_OF_THE_TIME = 0.1
"""That looking at run folders may take: a network file system answers slowly."""
GONE_AFTER = 3
"""A job that so many looks at the queue have not shown has ended."""
ALIVE = (
    *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT"),
)

USUAL = ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Cleaning", "Prolog")
"""Why a job waits for nothing but its turn."""
OURS = dict.fromkeys(
    (
        *("job-name", "array", "output", "error", "open-mode", "ntasks", "ntasks-per-node", "wrap"),
        *("parsable", "quiet", "wait", "test-only", "clusters", "no-requeue", "export"),
        *("help", "usage", "version"),
    ),
    "the launcher",
) | {
    "time": "launcher.timeout_min",
    "signal": "launcher.signal_delay_s",
    "mem": "launcher.mem_gb",
    "cpus-per-task": "launcher.cpus_per_task",
    **{name: f"launcher.{name}" for name in ("partition", "account", "qos", "constraint")},
    "nodes": "the launcher: a job has one",
}
"""Options of sbatch that are not to be given beside: who sets them."""
DEFAULTS = ("account", "partition", "qos", "constraint", "reservation")
"""Options that a user's SBATCH_* variables may set, where no key does; else they win over keys."""


def as_planned_here(config: TrainConfig, launcher: SlurmConfig) -> TrainConfig:
    """A run's config for planning on a machine that need not have the device of the jobs.

    What `precision=auto` means is part of a run's name, so it is settled here, for all nodes: on
    CPUs as it is timed here, on GPUs as bf16.
    """
    precision = "bf16" if settles_precision(config, launcher) else config.precision
    return replace(config, device="cpu", precision=precision)


def settles_precision(config: TrainConfig, launcher: SlurmConfig) -> bool:
    """Whether a precision is chosen for nodes that may not be like this machine: bf16."""
    return launcher.gpus_per_node > 0 and config.precision == "auto"


@dataclass
class Jobs:
    """Who trains a sweep: jobs, with so many worker processes, threads and cores each, and runs
    that each of their workers trains at once (None: on a GPU, as many as there is room for)."""

    launcher: SlurmConfig
    workers: int
    threads: int
    members: int | None

    @property
    def cores(self) -> int:
        on_gpu = self.launcher.gpus_per_node > 0
        return self.launcher.cpus_per_task or (4 if on_gpu else self.workers * self.threads)

    def number(self, runs: int) -> int:
        """How many jobs are wanted for so many runs."""
        return math.ceil(runs / self.launcher.runs_per_job)

    def cost(self, kinds: Sequence[tuple[Plan, Sequence[float]]]) -> str:
        """As that of `Hands`."""
        launcher, on_gpu = self.launcher, self.launcher.gpus_per_node > 0
        runs = sum(len(shares) for _, shares in kinds)
        jobs = self.number(runs)
        counts = f", {plural(jobs, 'job')} of {plural(min(launcher.runs_per_job, runs), 'run')}"
        if launcher.images_per_second is not None:
            trains = [(plan.config.train, sum(shares)) for plan, shares in kinds]
            images = sum(train.steps * train.batch_size * share for train, share in trains)
            seconds = images / launcher.images_per_second
            by = f"at launcher.images_per_second={launcher.images_per_second:g}"
        elif on_gpu:
            return f"{counts}; launcher.images_per_second= of a job gives an estimate"
        else:
            seconds = sum(seconds_of_training(plan) * sum(shares) for plan, shares in kinds)
            seconds /= min(self.workers, math.ceil(runs / jobs))
            by = "at this machine's speed"
        at_once = min(jobs, launcher.jobs_at_once or jobs)
        hours = seconds / 3600 * (1 if on_gpu else self.cores)
        return (
            f"{counts}: about {hours:.3g} {'GPU' if on_gpu else 'core'}-hours, "
            f"{duration(seconds / at_once)} with {at_once} at once, {by}, evaluation apart"
        )


def jobs_for(
    launcher: SlurmConfig, base: TrainConfig, workers: int | None, members: int | None, runs: int
) -> Jobs:
    """Who trains so many runs.

    Raises:
        UserError: what is asked does not go together.
    """
    threads, on_gpu = base.threads or 1, launcher.gpus_per_node > 0
    if base.device == ("cpu" if on_gpu else "cuda"):
        wanted = "0, a job trains on CPUs" if on_gpu else "1, a job trains on a GPU"
        raise UserError(f"device={base.device}: with launcher.gpus_per_node={wanted}")
    if not on_gpu and (members or 1) > 1:
        raise UserError(f"members={members}: goes with launcher.gpus_per_node=1")
    if isinstance(base.model, FOREIGN):
        if (members or 1) > 1:
            raise UserError(
                f"members={members}: {base.model.name} draws from a generator that a "
                f"process has once; workers= trains with more processes"
            )
        members = 1
    limit, delay = 60 * launcher.timeout_min, launcher.signal_delay_s
    if limit < delay + 60 or delay > max(600, limit // 5):
        raise UserError(
            f"launcher.signal_delay_s={delay}: must leave a minute of launcher.timeout_min="
            f"{launcher.timeout_min}, and be at most a fifth of it or 600"
        )
    for name, _, value in walk(launcher, "launcher."):
        values = [*value, *value.values()] if isinstance(value, dict) else value
        for one in values if isinstance(values, list) else [values]:
            if not str(one).isprintable():
                raise UserError(f"{name}={one!r}: must be on one line")
    for name, value in launcher.sbatch.items():
        option = str(name).replace("_", "-")
        # sbatch takes beginnings of its options too.
        for ours in (ours for ours in OURS if ours.startswith(option)):
            raise UserError(f"launcher.sbatch: {name} is set by {OURS[ours]}, leave it out")
        if isinstance(value, dict | list) or not option.replace("-", "").isalnum():
            raise UserError(
                f"launcher.sbatch: {name}={value!r}: must be a long option of sbatch with a word, "
                f"a number, or true; false or null leaves it out"
            )
    cores = launcher.cpus_per_task
    if cores is not None and cores < threads:
        raise UserError(f"launcher.cpus_per_task={cores}: must be at least threads={threads}")
    if cores is not None and not on_gpu and (workers or 1) * threads > cores:
        raise UserError(
            f"workers={workers}: need {(workers or 1) * threads} cores with threads={threads}, a "
            f"job has launcher.cpus_per_task={cores}"
        )
    most = 1 if on_gpu else cores // threads if cores else min(launcher.runs_per_job, runs)
    return Jobs(launcher, workers or most, threads, members if on_gpu else 1)


def check_installed() -> None:
    """Raises UserError where there is no Slurm or no submitit."""
    lacking = [name for name in ("sbatch", "squeue", "scontrol", "srun") if not shutil.which(name)]
    if lacking:
        raise UserError(
            f"launcher=slurm: there is no Slurm here ({', '.join(lacking)} not found); "
            f"launcher=local trains on this machine"
        )
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "launcher=slurm: needs submitit: pip install '.[slurm]', typed in lsexp's checkout"
        )


class Cluster:
    """In the place of a `Pool`: submits jobs for what is left, and watches.

    Args:
        plans: of the tasks to come, in their order.
        name: of the jobs; the same for the same runs, so that those submitted before are found.
        base: where runs and data are, and the device that was asked for.
        detach: return when the jobs are submitted.
    """

    def __init__(
        self, jobs: Jobs, plans: Sequence[Plan], name: str, base: TrainConfig, *, detach: bool
    ):
        check_installed()
        self.jobs, self.plans, self.name = jobs, plans, name
        self.base, self.detach = base, detach
        self.runs_dir = runs_folder(base.runs_dir).absolute()
        self._names = [plan.folder.path.name for plan in plans]
        self.folder = self.runs_dir / FOLDER / name
        """For what Slurm and submitit write."""
        self.states: dict[str, str] = {}
        """Of the jobs that are looked after, as the queue showed them last."""
        self._unseen: dict[str, int] = {}
        self._second: set[str] = set()
        """Those that have taken the place of another."""
        self._ended = ""
        """The job that ended last."""
        self._alone = 0.0
        """Since when no job is there."""
        self._errors: dict[str, str] = {}
        """Of runs, by the names of their folders, that jobs have told when they ended."""
        self._said: set[str] = set()

    def train(
        self, tasks: Sequence[Task], screen: Screen, *, members: int = 1
    ) -> tuple[list[Outcome | None], str]:
        """As `Pool.train`, by jobs; they go on when this is stopped."""
        outcomes: list[Outcome | None] = [None] * len(tasks)
        looks = [_Look(number, plan, screen) for number, plan in enumerate(self.plans)]
        self._submit_at_first(tasks, screen)
        if self.detach:
            return outcomes, DETACHED
        pause, ask = 0.5, 0.0
        with caught_signals() as signals:
            while True:
                began = time.monotonic()
                for number, look in enumerate(looks):
                    if outcomes[number] is None:
                        outcomes[number] = look.outcome()
                        if outcomes[number] is not None:
                            screen.end(number, outcomes[number])
                took = time.monotonic() - began
                todo = deque(number for number, one in enumerate(outcomes) if one is None)
                give_up(tasks, outcomes, todo, screen)  # as the pools of the jobs do
                if None not in outcomes:
                    self._tidy(outcomes, signals)
                    break
                if signals:
                    say(f"the jobs go on; `scancel --name={self.name}` stops them")
                    return outcomes, signals[0]
                if time.monotonic() >= ask:
                    pause = min(MOST_POLL_SECONDS, 1.2 * pause)
                    ask = time.monotonic() + pause
                    self._watch(tasks, screen)
                    if self._all_over(outcomes):
                        left = f"not finished, no job is there any more{self._last_words()}"
                        return [
                            one or Outcome(error=self._errors.get(name, left))
                            for name, one in zip(self._names, outcomes, strict=True)
                        ], ""
                least = min(MOST_POLL_SECONDS, took / MOST_OF_THE_TIME)
                until = time.monotonic() + max(min(1.0, pause), least)
                while not signals and (left_s := until - time.monotonic()) > 0:
                    time.sleep(min(0.2, left_s))
        return outcomes, signals[0] if signals else ""

    def _submit_at_first(self, tasks: Sequence[Task], screen: Screen) -> None:
        """Jobs for what those of before leave."""
        queue = self._queue_at_first()
        self.states = {job: state for job, state in queue.items() if state in ALIVE}
        going = [job for job, state in self.states.items() if state != "COMPLETING"]
        lacking = self.jobs.number(len(tasks)) - len(going)
        if going:
            go = "goes" if len(going) == 1 else "go"
            screen.say(f"{plural(len(going), 'job')} of before {go} on")
        # Those that failed are only among them with retry_failed: once, not by every job.
        failed = [plan.folder for plan in self.plans if plan.folder.failure() is not None]
        failures = {folder: (folder.path / "failure.json").read_bytes() for folder in failed}
        for folder in failures:
            folder.forget_failure()
        if failures:  # jobs of before have passed them
            lacking = max(1, lacking)
        if lacking <= 0:
            if self.detach:
                screen.say("none is wanted beside them")
            return
        try:
            self._submit(tasks, lacking, screen)
        except UserError:
            for folder, failure in failures.items():
                files.replace_file(folder.path / "failure.json", failure)
            raise

    def _all_over(self, outcomes: Sequence[Outcome | None]) -> bool:
        """Whether no job is there any more, and nothing to wait for."""
        if self.states:
            self._alone = 0.0
            return False
        self._alone = self._alone or time.monotonic()
        left = [name for name, one in zip(self._names, outcomes, strict=True) if one is None]
        if all(name in self._errors for name in left):
            return True
        self._say_once(
            f"no job is there any more; what the last have written is looked for, up to "
            f"{PATIENCE_SECONDS:.0f} s"
        )
        return time.monotonic() - self._alone >= PATIENCE_SECONDS

    def _submit(
        self, tasks: Sequence[Task], count: int, screen: Screen, *, second: bool = False
    ) -> None:
        """As one array."""
        launcher = self.jobs.launcher
        with submitting(launcher):
            import submitit  # which reads a variable of its own
        wanted = {
            "name": self.name,
            "timeout_min": launcher.timeout_min,
            "mem_gb": launcher.mem_gb,
            "cpus_per_task": self.jobs.cores,
            "slurm_signal_delay_s": launcher.signal_delay_s,
            "slurm_partition": launcher.partition,
            "slurm_account": launcher.account,
            "slurm_qos": launcher.qos,
            "slurm_constraint": launcher.constraint,
            "slurm_setup": launcher.setup or None,
            "slurm_array_parallelism": launcher.jobs_at_once or count,
            "gpus_per_node": launcher.gpus_per_node or None,
            # Slurm 22.05 and later do not hand the cores of a job to its steps.
            "slurm_srun_args": [f"--cpus-per-task={self.jobs.cores}"],
            "slurm_additional_parameters": {
                name: value
                for name, value in {"requeue": True, **launcher.sbatch}.items()
                if value is not None and value is not False
            },
        }
        # As any node can take them: folders by their whole path, the device that it has.
        everywhere = partial(
            replace,
            device="cuda" if launcher.gpus_per_node else "cpu",
            runs_dir=str(self.runs_dir),
            data_dir=str(data_folder(self.base.data_dir).absolute()),
        )
        theirs = [
            replace(task, config=everywhere(replace(task.config, retry_failed=False)))
            for task in tasks
        ]
        try:
            executor = submitit.AutoExecutor(
                self.folder, cluster="slurm", slurm_max_num_timeout=launcher.requeues
            )
            executor.update_parameters(
                **{name: value for name, value in wanted.items() if value is not None}
            )
            share = Share(theirs, self._names, self.jobs)
            with submitting(launcher), executor.batch():
                found = [executor.submit(share) for _ in range(count)]
        except (
            *(submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError),
            *(subprocess.SubprocessError, OSError),
        ) as error:
            lines = [s for s in str(error).splitlines() if "error:" in s or "fatal:" in s]
            raise UserError(
                f"launcher=slurm: {lines[-1].strip() if lines else error}", exit_code=1
            ) from error
        ids = [job.job_id for job in found]
        self.states.update(dict.fromkeys(ids, "PENDING"))
        several = f"{ids[0]} to {ids[-1]}" if len(ids) > 1 else ids[0]
        screen.say(f"{plural(count, 'job')} submitted: {several}; logs in {self.folder}")
        if second:
            self._second.add(ids[0])

    def _queue_at_first(self) -> dict[str, str]:
        """As `_queue`; nothing is submitted where jobs of before may be there unseen."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (queue := self._queue()) is None:
            if time.monotonic() >= deadline:
                raise UserError("launcher=slurm: squeue does not answer, see above", exit_code=1)
            time.sleep(5)
        return queue

    def _queue(self) -> dict[str, str] | None:
        """State of each job of this name that Slurm still knows; None where it does not answer."""
        try:
            rows = _squeue(self.name)
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            self._say_once(f"squeue: {' '.join(told.split())}; asked again")
            return None
        reasons = [why.replace(",", " ").split()[:1] for _, s, why in rows if s == "PENDING"]
        for why in sorted({word for words in reasons for word in words} - {*USUAL}):
            if why not in self._said:
                self._said.add(why)
                jobs = plural(reasons.count([why]), "job")
                say(f"{jobs} waiting: {why}; `squeue --name={self.name}` tells more")
        return {job: state for job, state, _ in rows}

    def _watch(self, tasks: Sequence[Task], screen: Screen) -> None:
        """Learn how the jobs are, and give one that was killed a second try."""
        queue = self._queue()
        if queue is None:
            return
        # Those of somebody else who typed the same, too.
        self.states = {job: s for job, s in queue.items() if s in ALIVE} | self.states
        for job in list(self.states):
            state = queue.get(job)
            if state == "PENDING" != self.states[job]:
                screen.say(f"job {job} was put back, and goes on later")
            self._unseen[job] = 0 if state else self._unseen.get(job, 0) + 1
            if state in ALIVE or (state is None and self._unseen[job] < GONE_AFTER):
                self.states[job] = state or self.states[job]
                continue
            del self.states[job]
            self._ended = job
            with contextlib.suppress(OSError, ValueError):
                self._errors |= json.loads((self.folder / f"{job}_errors.json").read_text())
            if state == "COMPLETED" or (state is None and self._result(job).exists()):
                continue
            ended, log = state or "and left the queue", f"log: {self._log(job)}"
            if state == "CANCELLED":
                screen.say(f"job {job} was cancelled ({log})")
            elif TOO_OFTEN in _end_of(self._log(job)):
                times = plural(self.jobs.launcher.requeues, "time")
                screen.say(f"job {job} came to its limit, put back {times} before ({log})")
            elif job in self._second:
                screen.say(f"job {job}, the second try, ended {ended} ({log})")
            else:
                screen.say(f"job {job} ended {ended} ({log}); another takes its place")
                try:
                    self._submit(tasks, 1, screen, second=True)
                except UserError as error:  # the others go on
                    screen.say(f"lsexp: {error}")

    def _tidy(self, outcomes: Sequence[Outcome | None], signals: list[str]) -> None:
        """Jobs end by themselves when all runs have; their files go where none has failed."""
        pending = ["scancel", "--state=PENDING", f"--name={self.name}", f"--user={os.getuid()}"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # they would find nothing
            subprocess.run(pending, capture_output=True, timeout=60)
        deadline = time.monotonic() + 60
        while self.states and not signals and time.monotonic() < deadline:
            queue = self._queue()
            if queue is not None:
                self.states = {job: s for job, s in queue.items() if s in ALIVE}
            time.sleep(0.5)
        if not self.states and all(one is not None and one.error is None for one in outcomes):
            _remove(self.folder)

    def _last_words(self) -> str:
        """The last line of the log of the job that ended last."""
        log = self._log(self._ended)
        lines = [line for line in _end_of(log).splitlines() if line.strip()]
        return f"; {log} ends: {lines[-1]!r}" if lines else f"; log: {log}"

    def _log(self, job: str) -> Path:
        return self.folder / f"{job}_0_log.err"

    def _result(self, job: str) -> Path:
        """What a job leaves that has come to its end."""
        return self.folder / f"{job}_0_result.pkl"

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)


class _Look:
    """What the folder of a run tells of it while somebody else trains it."""

    def __init__(self, number: int, plan: Plan, screen: Screen):
        self.number, self.plan, self.screen = number, plan, screen
        self._step = -1

    def outcome(self) -> Outcome | None:
        """How the run ended; None: not yet."""
        folder = self.plan.folder
        try:
            if self.plan.done():
                return Outcome(metrics=folder.metrics())
            now = folder.failure()
        except UserError as error:
            return Outcome(error=str(error))
        if now is not None:
            return Outcome(error=str(now.get("error")))
        self._progress()
        return None

    def _progress(self) -> None:
        record = claims.owner(self.plan.folder.path)
        if record is None or record.get("released"):
            return
        path = claims.attempt_folder(self.plan.folder.path, record["nonce"]) / "history.csv"
        rows = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), path.open() as file:
            rows = [_row(line) for line in csv.DictReader(file)]
        step = rows[-1].step if rows else 0
        if step == self._step:
            return
        if self._step < 0:
            self.screen.start(self.number)
        self._step = step
        if rows:
            last, images = rows[-1], self.plan.config.train.batch_size
            self.screen.epoch(self.number, last)
            speed = last.step * images / max(last.seconds, 1e-9)
            self.screen.look(self.number, last.step, last.train_loss, speed)


def _row(line: dict[str, str]) -> EpochRow:
    values = {item.name: line[item.name] for item in fields(EpochRow)}
    numbers = {name: None if text == "" else float(text) for name, text in values.items()}
    return EpochRow(**{**numbers, "step": int(values["step"])})  # type: ignore[arg-type]


@dataclass
class Share:
    """What a job does, on its node: train all tasks that nobody else trains.

    submitit calls it, and keeps it for the next time where Slurm puts the job back.

    names: of the tasks' folders.
    """

    tasks: list[Task]
    names: list[str]
    jobs: Jobs

    def __call__(self) -> None:
        import submitit

        from lsexp.launch.progress import SweepView

        env = submitit.JobEnvironment()
        put_back = signal.getsignal(signal.SIGUSR2)  # submitit's
        asked: list[str] = []

        def note(number: int, _frame: FrameType | None) -> None:
            asked.append(signal.Signals(number).name)

        for number in (signal.SIGUSR2, signal.SIGTERM):  # the limit comes; preempted or cancelled
            signal.signal(number, note)
        labels = [task.label for task in self.tasks]
        steps = [task.config.train.steps for task in self.tasks]
        with (
            Pool(self.jobs.workers, self.jobs.threads) as pool,
            SweepView(labels, steps, [0] * len(steps)) as view,
        ):
            members = self._members()
            outcomes, _ = pool.train(self.tasks, view, members=members, signals=asked)
        if None in outcomes and asked:
            say(f"stopped by {asked[0]}, with checkpoints")
            if asked[0] == "SIGUSR2" or not _is_cancelled(env.job_id):
                assert callable(put_back)
                put_back(signal.SIGUSR2, None)
            raise SystemExit(1)
        named = zip(self.names, outcomes, strict=True)
        errors = {name: one.error for name, one in named if one is not None and one.error}
        if errors:  # of which not all are in the folders of the runs
            files.replace_file(
                env.paths.folder / f"{env.job_id}_errors.json", json.dumps(errors, indent=1)
            )

    def checkpoint(self) -> Any:
        """submitit's word for what goes on after a job was put back: the checkpoints are made."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def _members(self) -> int:
        if self.jobs.members is not None:
            return self.jobs.members
        from lsexp.launch.hands import Hands, members_of
        from lsexp.launch.plan import Planner

        planners: dict[str, Planner] = {}  # each loads its data once
        plans = []
        for task in self.tasks:
            if task.after is None:
                key = repr(task.chosen)
                planners.setdefault(key, Planner(task.chosen, task.command))
                plans.append(planners[key](task.config))
        return members_of(plans, Hands(self.jobs.workers, self.jobs.threads, None))


def _is_cancelled(job: str) -> bool:
    """Whether this job is to end, by somebody's wish: one that is to go on elsewhere still runs.

    job: with its place in its array, by which Slurm tells of it alone.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["scontrol", "show", "job", "-o", job], capture_output=True, text=True, timeout=60
        ).stdout
        return "JobState=RUNNING" not in told
    return True


@contextlib.contextmanager
def submitting(launcher: SlurmConfig) -> Iterator[None]:
    """To submit in: without what a job that submits has itself, and without a user's settings that
    would win over ours."""
    given = {str(name).replace("_", "-") for name, value in launcher.sbatch.items() if value}
    given |= {name for name in DEFAULTS if getattr(launcher, name, None) is not None}
    kept = {"SLURM_CONF", *(f"SBATCH_{name.upper()}" for name in {*DEFAULTS} - given)}
    before = dict(os.environ)
    for name in before:
        if name.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")) and name not in kept:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def _squeue(name: str) -> list[list[str]]:
    """Jobs of this name that Slurm still knows: each with its state, and why it waits."""
    command = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-n", name]
    command += ["-o", "%i|%T|%r"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    return [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]


def clear(runs_dir: Path, plans: Sequence[Plan]) -> None:
    """Remove what is left of jobs for these runs, when they are done; not if any is alive."""
    folder = runs_dir / FOLDER / name_of(plans)
    if not folder.is_dir():
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if not any(state in ALIVE for _, state, _ in _squeue(folder.name)):
            _remove(folder)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        files.remove(folder)
        folder.parent.rmdir()


def _end_of(log: Path) -> str:
    """Its last kilobytes; "" where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return file.read().decode(errors="replace")
    return ""


def name_of(plans: Sequence[Plan]) -> str:
    """Of the jobs for these runs in their folder, and for what else decides how they end."""
    names = sorted(
        f"{plan.folder.path.resolve()} {len(plan.snapshots)} {plan.config.resume} "
        f"{data_folder(plan.config.data_dir).absolute()}"
        for plan in plans
    )
    return f"lsexp-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
