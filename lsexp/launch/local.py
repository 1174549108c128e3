"""Train a planned run here: from a plan to a finished run folder.

Nothing is trained twice: a finished run is shown as it is, one that another process trains is
waited for, one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lsexp import files
from lsexp.errors import NOT_OURS, UserError, no_memory
from lsexp.files import replace_file
from lsexp.launch.plan import UNREADABLE, Plan, stale
from lsexp.launch.progress import Shown, View
from lsexp.launch.results import Segment, failure, segment, write_results
from lsexp.models.foreign import NetworkError
from lsexp.processes import caught_signals
from lsexp.runs.claims import Claim, Record, acquire, describe
from lsexp.runs.store import (
    RunFolder,
    aside_of,
    elsewhere,
    kept_snapshots,
    snapshot_of,
    snapshot_path,
)
from lsexp.runs.tensors import packed
from lsexp.text import say
from lsexp.training.bank import stepper, stream
from lsexp.training.checkpoint import pack
from lsexp.training.hardware import Environment, environment, prepare
from lsexp.training.history import EpochRow, history_text
from lsexp.training.loop import Diverged, Progress, train


class Elsewhere(Exception):
    """Another process trains the run now."""


class OutOfMemory(UserError):
    """The memory did not suffice."""


class Removed(UserError):
    """The folder of a run was removed while it was waited for or trained."""


@dataclass(frozen=True)
class _How:
    """How a run is trained here: see `execute`."""

    wait: bool
    view: Callable[..., Shown]
    signals: list[str] | None


def execute(
    plan: Plan,
    *,
    wait: bool = True,
    view: Callable[..., Shown] = View,
    signals: list[str] | None = None,
) -> dict[str, Any]:
    """Bring the planned run to its end, or find it finished, with the snapshots asked for.

    Args:
        wait: for another process that trains it; else that is an error.
        view: called with `steps` and `start`; gives what shows the progress.
        signals: names of those that came, which stop the run; somebody else adds to them. None:
            those of this process are caught here, which only its main thread can.

    Returns:
        Its metrics.

    Raises:
        UserError: exit code 1: failed now or before, interrupted, or not to be continued here.
        Elsewhere: another process trains it and `wait` is off.
    """
    how = _How(wait, view, signals)
    metrics = _bring_to_its_end(plan, how)
    if plan.lacking(plan.folder.path):
        try:
            _train_aside(plan, metrics, how)
        except Stopped:
            raise
        except (OSError, UserError):
            if plan.lacking(plan.folder.path):  # else another process was first
                raise
    clear_aside(plan)
    return metrics


def begin_again(plan: Plan) -> Plan:
    """With resume=restart, the plan of a run that begins at step 0: what is typed once is done
    once, not by every worker that takes the run over. One that a process trains now is left."""
    if plan.config.resume != "restart":
        return plan
    plan.trained_in().outdate_checkpoints()
    return replace(plan, config=replace(plan.config, resume="exact"))


def clear_aside(plan: Plan) -> None:
    """Remove where a run was trained again, which has all its snapshots by now; also what a kill
    has left of it."""
    aside = aside_of(plan.folder.path, plan.config.artifacts.snapshots)
    if not plan.snapshots or not aside.parents[1].is_dir():
        return
    files.clear(aside.parent)
    with contextlib.suppress(OSError):
        files.remove(aside)
    for empty in (aside.parent, aside.parents[1]):
        with contextlib.suppress(OSError):  # others may be at work there
            empty.rmdir()


def _bring_to_its_end(
    plan: Plan, how: _How, needless: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """As `execute`, snapshots apart; {} as soon as it is `needless`."""
    folder, config = plan.folder, plan.config
    # Here too: a run before in this process may have kept to another number of threads.
    prepare(plan.device, config.threads or 1, fast=config.fast)
    folder.create(config, plan.identity, plan.chosen)
    env = environment(plan.device, config.precision, fast=config.fast)
    told: list[str] = []

    def over() -> bool:
        if needless():
            return True
        if folder.finished():
            if plan.stale():
                raise UserError(f"{folder.path}: {stale(folder.path)}", exit_code=1)
            return True
        failure = folder.failure()
        if failure is not None and not config.retry_failed:
            raise UserError(
                f"{folder.path}: failed before: {failure.get('error')}; "
                f"the same command with retry_failed=true trains it again",
                exit_code=1,
            )
        return False

    def waiting(record: Record) -> None:
        if not how.wait:
            raise Elsewhere
        if how.signals:
            raise Stopped(f"stopped by {how.signals[0]}", exit_code=1)
        if record["nonce"] not in told:
            told.append(record["nonce"])
            say(f"{folder.path} is being trained by {describe(record)}; waiting for it")

    try:
        while not over():
            claim = acquire(
                folder.path,
                timeout=config.claim_timeout,
                environment=env._asdict(),
                over=over,
                waiting=waiting,
            )
            if claim is not None:
                _train(plan, claim, env, how)
    except OSError as error:
        if not folder.path.is_dir():
            raise Removed(f"{folder.path}: was removed meanwhile", exit_code=1) from error
        if error.errno not in NOT_OURS:
            raise
        raise UserError(
            f"{folder.path}: {error.strerror or error} ({error.filename}); once that is mended, "
            f"the same command goes on",
            exit_code=1,
        ) from error
    return {} if needless() else folder.verified_metrics()


def _train_aside(plan: Plan, metrics: dict[str, Any], how: _How) -> None:
    """Train a finished run once more in a folder of its own, and take only its snapshots.

    Raises:
        UserError: it would not, or did not, end in the weights of the finished run, or its folder
            cannot be written.
    """
    folder, path = plan.folder, plan.folder.path
    config = replace(
        plan.config,
        artifacts=replace(plan.config.artifacts, tensorboard=False),
        threads=metrics["config"]["threads"],
        fast=False,  # which ends in other weights
    )
    _check_repeatable(plan, metrics)
    try:
        folder.snapshot(0).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror} ({error.filename})", exit_code=1) from error
    say(f"{path}: finished without the snapshots asked for; trained again aside for them")
    aside = replace(
        plan, config=config, folder=RunFolder(aside_of(path, plan.config.artifacts.snapshots))
    )
    while plan.lacking(path):
        try:
            again = _bring_to_its_end(aside, how, needless=lambda: not plan.lacking(path))
            if again and not _take_over(plan, metrics, aside.folder, again):
                files.remove(aside.folder.path)  # and once more
        except (Removed, FileNotFoundError):  # by another process that has taken over from it
            if not path.is_dir():
                raise
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}; once that is mended, the same command goes on",
                exit_code=1,
            ) from error


def _take_over(
    plan: Plan, metrics: dict[str, Any], aside: RunFolder, again: dict[str, Any]
) -> bool:
    """Snapshots of a training aside that has ended, if it ended in the weights of the run; False
    where it does not have them all, as they were written."""
    if again["checksums"]["model.safetensors"] != metrics["checksums"]["model.safetensors"]:
        shutil.rmtree(aside.path, ignore_errors=True)
        raise UserError(
            f"{plan.folder.path}: trained again, it ended in other weights: its snapshots cannot "
            f"be had here; `lsexp runs rm {plan.folder.path.name}"
            f"{elsewhere(plan.folder.path.parent)}`, and it is trained anew with them",
            exit_code=1,
        )
    lacking = plan.lacking(plan.folder.path)
    if not all(plan.has(aside.path, step) for step in lacking):
        return False
    for step in lacking:
        # Copied, so that a kill here costs nothing: the training aside stays whole until the end.
        replace_file(plan.folder.snapshot(step), aside.snapshot(step).read_bytes())
    return True


def _check_repeatable(plan: Plan, metrics: dict[str, Any]) -> None:
    """Refuse before hours of training what could not end in the same weights."""
    here = environment(plan.device, plan.config.precision).decisive()  # never fast: not repeatable
    for part in metrics["provenance"]["segments"]:
        of_part = Environment(**part["environment"]).decisive()
        for name, now in here.items():
            then = of_part.get(name, now)
            if then != now and plan.config.resume == "exact":
                there = "device=cpu trains there, " if (name, then) == ("device", "cpu") else ""
                raise UserError(
                    f"{plan.folder.path}: was trained with {name} {then}, here it is {now}: "
                    f"trained again for its snapshots, it would end in other weights; {there}"
                    f"resume=any tries all the same",
                    exit_code=1,
                )


class Stopped(UserError):
    """Interrupted, with everything kept."""


def _told_by_others(args: threading.ExceptHookArgs) -> None:
    """Of a thread that ended by an error: nothing where TensorBoard's met what the loop meets too,
    a full disk or an attempt that was taken away."""
    ours = issubclass(args.exc_type, OSError) and "_AsyncWriter" in type(args.thread).__name__
    if not ours:
        threading.__excepthook__(args)


class _Recorder:
    """What the loop tells goes to the attempt folder, TensorBoard and the screen."""

    def __init__(
        self,
        plan: Plan,
        claim: Claim,
        view: Shown,
        signals: list[str],
        segments: list[Segment],
        taught: dict[str, Any] | None,
        snapshots: Sequence[int],
    ) -> None:
        self.plan = plan
        self.snapshots = snapshots
        self.taught = taught
        self.claim = claim
        self.view = view
        self.signals = signals
        self.segments = segments
        self.history: list[EpochRow] = []
        self.tensorboard = None
        if plan.config.artifacts.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = _told_by_others
            self.tensorboard = SummaryWriter(str(claim.attempt), flush_secs=30)

    def look(self, step: int, loss: float, images_per_second: float) -> None:
        self.view.look(step, loss, images_per_second, self.plan.config.train.batch_size)

    def epoch(self, row: EpochRow) -> None:
        self.history.append(row)
        self.view.epoch(row)
        if self.tensorboard is not None:
            values = asdict(row)
            for name in ("lr", "train_loss", "train_accuracy", "val_accuracy", "val_nll"):
                if values[name] is not None:
                    tag = name.replace("_", "/", 1)
                    self.tensorboard.add_scalar(tag, values[name], row.step)

    def checkpoint(self, state: dict[str, Any]) -> None:
        plan = self.plan
        more = {"identity": plan.identity, "segments": self.segments, "teacher": self.taught}
        whole = pack({**state, **more, "snapshots": [*self.snapshots]})
        replace_file(self.claim.attempt / "checkpoint.pt", whole)
        replace_file(self.claim.attempt / "history.csv", history_text(self.history))

    def snapshot(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        path = snapshot_path(self.claim.attempt, step)
        path.parent.mkdir(exist_ok=True)
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in weights.items()}
        replace_file(path, packed(arrays, snapshot_of(self.plan.identity, step)))

    def stopping(self) -> bool:
        return bool(self.signals) or self.claim.lost

    def close(self) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()


def _train(plan: Plan, claim: Claim, env: Environment, how: _How) -> None:
    """Train under `claim` until the run ends, is interrupted, or the claim is lost."""
    folder, others = plan.folder, how.signals
    try:
        caught = caught_signals(raises=True) if others is None else contextlib.nullcontext(others)
        with caught as signals, stream(plan.device):
            _train_claimed(plan, claim, env, how.view, signals)
    except Diverged as error:
        message = (
            f"{folder.path}: {error}; a lower optim.lr or a gradient clipped by optim.clip_norm "
            f"may help; retry_failed=true trains the same again"
        )
        record = failure(plan, error, step=error.step)
        folder.fail(claim, record, keep_checkpoint=False)  # it would diverge again
        raise UserError(message, exit_code=1) from error
    except NetworkError as error:  # raised by code of the user's
        cause = error.__cause__
        assert isinstance(cause, Exception)
        lost = _lost(plan.device, cause)
        if lost is not None:
            claim.release()
            raise lost from error
        folder.fail(claim, failure(plan, cause, network=str(error)), keep_checkpoint=True)
        raise UserError(
            f"{folder.path}: {error}; its failure.json has the traceback, retry_failed=true tries "
            f"again",
            exit_code=1,
        ) from error
    except OSError as error:
        if claim.attempt.is_dir() and error.errno not in NOT_OURS:
            folder.fail(claim, failure(plan, error), keep_checkpoint=True)
            raise
        gone = not claim.attempt.is_dir()
        claim.release()
        if gone:  # taken away by a process that took over, or by a person
            return
        where = "" if error.filename is None else f" ({error.filename})"
        raise UserError(
            f"{folder.path}: {error.strerror or error}{where}; once that is mended, the same "
            f"command goes on from the last checkpoint",
            exit_code=1,
        ) from error
    except (UserError, KeyboardInterrupt):
        claim.release()
        raise
    except Exception as error:
        lost = _lost(plan.device, error)
        if lost is not None:  # the device's fault, not the run's
            claim.release()
            raise lost from error
        folder.fail(claim, failure(plan, error), keep_checkpoint=True)
        raise
    if signals and others is None:  # came while the run was ending: the words still stand
        signal.raise_signal(signal.Signals[signals[0]])


def _lost(device: torch.device, error: Exception) -> Exception | None:
    """What to raise where there is no memory left, or a device has failed for the whole process."""
    line = no_memory(error)
    if line is not None:
        less = "members=1) or device=cpu need" if device.type == "cuda" else "workers=1) need"
        return OutOfMemory(
            f"{line}; fewer runs at once ({less} less, and the same command goes on from the last "
            f"checkpoint",
            exit_code=1,
        )
    if device.type == "cuda" and not isinstance(error, torch.AcceleratorError):
        try:  # libraries tell of it in words of their own
            torch.cuda.synchronize(device)
        except torch.AcceleratorError as found:
            return found
    return error if isinstance(error, torch.AcceleratorError) else None


def _train_claimed(
    plan: Plan, claim: Claim, env: Environment, view: Callable[..., Shown], signals: list[str]
) -> None:
    config, folder = plan.config, plan.folder
    train_images, val = plan.images("train"), plan.images("val")

    taught = plan.taught()
    state, env = _state_to_resume(plan, claim, env, taught)
    if not claim.held():
        return
    folder.forget_failure()
    member = plan.member(train_images)
    progress = Progress()
    if state is not None:
        member.load(state["member"])
        progress = Progress.load(state["progress"])
        say(f"continuing {folder.path} from step {member.step}")
    segments = [] if state is None else state["segments"]
    segments = [*segments, segment(plan, env, member.step)]
    # Also those that another command began it for, which would have to train it again.
    begun_for = [] if state is None else state.get("snapshots", [])
    snapshots = sorted({*plan.snapshots, *begun_for})

    with view(steps=config.train.steps, start=member.step) as shown:
        recorder = _Recorder(plan, claim, shown, signals, segments, taught, snapshots)
        for row in progress.history:
            recorder.epoch(row)
        try:
            done = train(
                member,
                val,
                recorder,
                progress,
                checkpoint_seconds=config.artifacts.checkpoint_seconds,
                snapshots=snapshots,
                advance=stepper(
                    member, capture=config.capture, exact=not config.fast, name=folder.path.name
                ),
            )
        finally:
            recorder.close()
    if not done:
        if claim.lost:
            return
        without = ", without resume=restart," if "resume=restart" in plan.command else ""
        raise Stopped(
            f"stopped by {signals[0]} at step {member.step} of {config.train.steps}; nothing is "
            f"lost: the same command{without} goes on from there ({folder.path})",
            exit_code=1,
        )
    images = {"train": train_images, "val": val, "test": plan.images("test")}
    write_results(plan, claim.attempt, member, images, progress, segments, taught)
    folder.publish(claim)


def _state_to_resume(
    plan: Plan, claim: Claim, env: Environment, taught: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, Environment]:
    """The newest readable checkpoint, taken into this attempt, and the environment to keep to.

    Raises:
        UserError: the run began where its last bit cannot be repeated here.
    """
    folder = plan.folder
    state = None
    for path in folder.checkpoints():
        try:
            state = plan.checkpoint(path)
            step = state["member"]["step"]
            lacking = [at for at in plan.snapshots if at <= step and not plan.has(path.parent, at)]
            if lacking or state.get("teacher") != taught:
                what = f"without {len(lacking)} of the snapshots asked for"
                why = what if lacking else "its teacher has been trained again since"
                say(f"{path.parent}: {why}; the run begins again")
                state = None
                continue
            began = Environment(**state["segments"][-1]["environment"])
        except UNREADABLE as error:
            say(f"{path}: damaged ({error}), ignored")
            state = None
            continue
        env = _keep_to(began, env, plan)
        for at, kept in kept_snapshots(path.parent).items():
            # Also those that are not asked for now; not those behind the checkpoint, made again.
            if at <= step and path.parent != claim.attempt:
                (claim.attempt / "snapshots").mkdir(exist_ok=True)
                replace_file(claim.attempt / "snapshots" / kept.name, kept.read_bytes())
        replace_file(claim.attempt / "checkpoint.pt", path.read_bytes())
        history = Progress.load(state["progress"]).history
        replace_file(claim.attempt / "history.csv", history_text(history))
        break
    if claim.held():  # else it may be our heir's
        folder.remove_attempts(keep=claim.attempt)
    return state, env


def _keep_to(began: Environment, here: Environment, plan: Plan) -> Environment:
    """Train on with what the run began with; only the number of threads can be set."""
    if plan.config.resume == "exact":
        now_here = here.decisive()
        for name, before in began.decisive().items():
            now = now_here.get(name, before)
            if before != now:
                raise UserError(
                    f"{plan.folder.path}: began with {name} {before}, here it is {now}: the "
                    f"weights would not be those of an undisturbed run; resume=any goes on "
                    f"nevertheless, resume=restart begins again",
                    exit_code=1,
                )
        if began.threads != here.threads:
            say(f"keeping to threads={began.threads}, with which this run began")
            torch.set_num_threads(began.threads)
            return began
    return here
