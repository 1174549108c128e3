"""Plan a run: load its data, resolve what its config leaves open, say what it will cost.

Nothing is written to the run's folder here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsexp import compose
from lsexp.config import (
    CustomConfig,
    DistillationConfig,
    LossConfig,
    StepsConfig,
    TrainConfig,
    check,
)
from lsexp.data import Dataset, Splits, draw_splits, load
from lsexp.data.batches import Images, input_shape
from lsexp.errors import UserError
from lsexp.files import clear, replace_file
from lsexp.launch.teaching import (
    Teaching,
    find_teacher,
    seconds_of_pass,
    settled,
    teacher_of,
    views,
)
from lsexp.losses import Targets, targets
from lsexp.models import build_model
from lsexp.models.foreign import source_digest
from lsexp.runs import claims
from lsexp.runs.catalog import teacher_changed
from lsexp.runs.claims import create_exclusively
from lsexp.runs.identity import Science, run_name, science
from lsexp.runs.store import (
    RunFolder,
    aside_of,
    elsewhere,
    runs_folder,
    snapshot_of,
    snapshot_path,
)
from lsexp.runs.tensors import unpacked
from lsexp.text import duration
from lsexp.training.bank import stepper, stream
from lsexp.training.checkpoint import unpack
from lsexp.training.evaluate import logits_of
from lsexp.training.hardware import (
    choose_precision,
    cpu_class,
    default_threads,
    prepare,
    resolve_device,
    seconds_of,
)
from lsexp.training.member import MOST_STEPS, Member
from lsexp.training.optimizer import parameter_groups
from lsexp.training.snapshots import snapshot_steps

UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError)
"""What reading a checkpoint raises that is damaged, or of another version."""


@dataclass(frozen=True)
class Plan:
    """A run that could be trained: everything resolved, nothing written.

    Attributes:
        config: resolved: no `auto` precision or device, epochs turned into steps.
        chosen: the names of recipe and budget, for the record.
        command: what was typed, for the record.
        teaching: of a student.
    """

    config: TrainConfig
    chosen: dict[str, str]
    command: list[str]
    dataset: Dataset
    splits: Splits
    targets: Targets
    identity: Science
    folder: RunFolder
    teaching: Teaching | None = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.device)

    @property
    def snapshots(self) -> list[int]:
        """Steps after which weights are to be kept."""
        return snapshot_steps(self.config.train.steps, self.config.artifacts.snapshots)

    def lacking(self, folder: Path) -> list[int]:
        """Those of which a run folder, or an attempt's, has no weights."""
        return [step for step in self.snapshots if not snapshot_path(folder, step).is_file()]

    def has(self, folder: Path, step: int) -> bool:
        """Whether the snapshot after so many steps is there as it was written."""
        path = snapshot_path(folder, step)
        return unpacked(path, snapshot_of(self.identity, step)) is not None

    def checkpoint(self, path: Path) -> dict[str, Any]:
        """The state in a checkpoint of this run.

        Raises:
            ValueError, or another of `UNREADABLE`: it is damaged, or of another run.
        """
        state = unpack(path.read_bytes())
        if state["identity"] != self.identity:
            raise ValueError("of another run")
        int(state["member"]["step"])
        return state

    def done(self) -> bool:
        """Whether the run is finished, with all that is asked of it, and not stale."""
        return self.folder.finished() and not self.lacking(self.folder.path) and not self.stale()

    def stale(self) -> bool:
        """Whether a finished run's teacher has been trained again since, to other weights."""
        folder = self.folder
        return self.teaching is not None and teacher_changed(folder.path, folder.metrics())

    def trained_in(self) -> RunFolder:
        """Where its checkpoints are: a finished run is trained again aside."""
        folder, count = self.folder, self.config.artifacts.snapshots
        return RunFolder(aside_of(folder.path, count)) if folder.finished() else folder

    def images(self, split: str) -> Images:
        arrays = self.dataset.arrays
        if split == "test":
            images, labels = arrays.test_images, arrays.test_labels
            return Images.on(self.device, images, labels, np.arange(len(labels)))
        which = getattr(self.splits, split)
        return Images.on(self.device, arrays.train_images, arrays.train_labels, which)

    def variant(self, loss: LossConfig, seed: int, teaching: Teaching | None = None) -> Plan:
        """The same run under another loss and seed; the data are not looked at again.

        Args:
            teaching: where it is known already.
        """
        config = replace(self.config, loss=loss, seed=seed)
        if isinstance(loss, DistillationConfig):
            teaching = teaching or find_teacher(config)
            config = settled(config, teaching, self.dataset)
        identity = science(config, self.dataset.digest)
        if "model.source" in self.identity:
            identity["model.source"] = self.identity["model.source"]
        if teaching is not None:
            identity["loss.teacher"] = teaching.identity
        name = run_name(config, self.dataset.name, identity)
        return replace(
            self,
            config=config,
            targets=targets(loss, self.dataset.num_classes),
            identity=identity,
            folder=RunFolder(self.folder.path.with_name(name)),
            teaching=teaching,
        )

    def taught(self) -> dict[str, Any] | None:
        """What teaches a student, as `Teaching.record`."""
        if self.teaching is None:
            return None
        assert isinstance(self.config.loss, DistillationConfig)
        return self.teaching.record(self.folder.path, self.config.loss.teacher_step)

    def member(self, train: Images) -> Member:
        taught = None if self.teaching is None else teacher_of(self, train)
        return Member(self.config, train, self.dataset.num_classes, taught)


def plan(
    config: TrainConfig,
    chosen: dict[str, str],
    command: list[str],
    *,
    remember: bool = True,
    teaching: Teaching | None = None,
    dataset: Dataset | None = None,
) -> Plan:
    """Load the data and resolve what the config leaves open.

    Args:
        remember: write down in runs_dir what `precision=auto` was found to mean. Else nothing is
            trained by the plan, and the device that is named need not be here.
        teaching: of a student whose teacher is not trained yet.
        dataset: the config's, where it is loaded already.

    Raises:
        UserError: for anything that could not be trained.
    """
    check(config)
    dataset = dataset or load(config.data, config.data_dir)
    splits = draw_splits(dataset, config.data)
    here = remember or config.device == "auto"
    device = resolve_device(config.device) if here else torch.device(config.device)
    threads = config.threads or default_threads()
    config = replace(
        config,
        data=replace(config.data, train_size=_size_of_subset(config, dataset, splits)),
        train=_steps(config, len(splits.train)),
        device=device.type,
        threads=threads,
    )
    prepare(device, threads)
    _check_windows(config, dataset)
    if dataset.image_shape[:2] == (config.augment.crop, config.augment.crop):  # that is no crop
        config = replace(config, augment=replace(config.augment, crop=None))
    _check_names(config, dataset)
    source = {}
    if isinstance(config.model, CustomConfig):
        source["model.source"] = source_digest(config.model.target)
    if config.precision == "auto":
        precision = _precision(config, dataset, splits, device, source, remember=remember)
        config = replace(config, precision=precision)
    prepare(device, threads, fast=config.fast)
    identity = {**science(config, dataset.digest), **source}
    name = run_name(config, dataset.name, identity)
    found = Plan(
        config,
        chosen,
        command,
        dataset,
        splits,
        targets(config.loss, dataset.num_classes),
        identity,
        RunFolder(place_of_runs(config.runs_dir) / name),
    )
    if isinstance(config.loss, DistillationConfig):
        return found.variant(config.loss, config.seed, teaching)
    return found


def place_of_runs(typed: str | None) -> Path:
    """`runs_folder`, which may not exist yet.

    Raises:
        UserError: it is, or would be in, what is no folder.
    """
    folder = runs_folder(typed)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"runs_dir={folder}: {nearest} is no folder")
    return folder


class Planner:
    """Plans the runs of one command; what they share is loaded and looked at once."""

    def __init__(self, chosen: dict[str, str], command: list[str], *, remember: bool = True):
        self.chosen = chosen
        self.command = command
        self.remember = remember
        self._planned: list[tuple[TrainConfig, Plan]] = []

    def __call__(self, config: TrainConfig, teaching: Teaching | None = None) -> Plan:
        """As `plan`."""
        for before, like in self._planned:
            if replace(before, loss=config.loss, seed=config.seed) == config:
                check(config)
                return like.variant(config.loss, config.seed, teaching)
        of = _source(config)
        found = plan(
            config,
            self.chosen,
            self.command,
            remember=self.remember,
            teaching=teaching,
            dataset=next((p.dataset for before, p in self._planned if _source(before) == of), None),
        )
        self._planned.append((config, found))
        return found


def _source(config: TrainConfig) -> tuple[Any, ...]:
    """Where the data come from."""
    data = config.data
    return data.name, data.path, data.image_size, data.url, config.data_dir


def describe(plan: Plan) -> str:
    """What will be trained, in a few lines."""
    return f"run      {plan.folder.path}\n{describe_training(plan)}\n{_describe_targets(plan)}"


def _describe_targets(plan: Plan) -> str:
    found, loss, taught = plan.targets, plan.config.loss, plan.teaching
    if isinstance(loss, DistillationConfig) and taught is not None:
        when = "" if loss.teacher_step is None else f" after {loss.teacher_step:,} steps"
        count = views(plan.config, taught.config, plan.dataset.image_shape)
        own = loss.student_temperature == "tied"
        seen = {1: "each image once", 2: "each image as it is and mirrored", None: "every batch"}
        how = "logits" if loss.match == "logits" else f"temperature {loss.temperature:g}"
        return (
            f"teacher  {taught.path.name}{when}, {how}"
            f"{', the student too' if own else ''}{', times T^2' if loss.t_squared else ''}, "
            f"share {loss.beta:g}; it sees {seen[count]}"
        )
    gap = "unbounded" if found.logit_gap is None else f"{found.logit_gap:.3f}"
    return (
        f"targets  true class {found.true:.4g}, others {found.other:.4g} each: eps "
        f"{found.eps_uniform:.4g} spread uniform = {found.eps_others:.4g} spread others; "
        f"logit gap at the optimum {gap}"
    )


def describe_training(plan: Plan) -> str:
    """Recipe, data and length of a run: what the runs of a sweep share."""
    config = plan.config
    batch, images = config.train.batch_size, len(plan.splits.train)
    return "\n".join(
        [
            f"recipe   {plan.chosen.get('recipe')}, budget {plan.chosen.get('budget')}"
            f"{_made_for_others(plan)}",
            f"data     {plan.dataset.name}: {images:,} train, {len(plan.splits.val):,} val, "
            f"{len(plan.dataset.arrays.test_labels):,} test, {plan.dataset.num_classes} classes",
            f"train    {config.train.steps:,} steps of {batch} = "
            f"{config.train.steps * batch / images:.4g} epochs, {config.precision} on "
            f"{config.device} ({cpu_class()}), threads={config.threads}",
        ]
    )


def _made_for_others(plan: Plan) -> str:
    """What to say where nothing but the data was chosen: the rate and schedule are the digits'."""
    data, recipes = plan.dataset.name, compose.options("recipe", None)
    theirs = [name for name in recipes if name.startswith(f"{data}_") and "distill" not in name]
    if plan.chosen.get("recipe") != "digits_mlp" or data == "digits":
        return ""
    others = f"recipe={theirs[0]} has those for {data}" if theirs else "recipe= chooses others"
    return f": made for digits, its rate and schedule too; {others}"


def describe_state(plan: Plan) -> str:
    """What is left to do, from the folder and a short measurement here."""
    folder, steps = plan.folder, plan.config.train.steps
    if plan.done():
        return "state    finished"
    if folder.finished() and plan.stale():
        return f"state    finished, but {stale(folder.path)}"
    if folder.finished():
        cost = duration(seconds_of_training(plan) * (1 - steps_done(plan) / steps))
        return (
            f"state    finished, but for {len(plan.lacking(folder.path))} snapshots; about {cost} "
            f"to train it again aside for these"
        )
    record = claims.trainer(folder.path)
    if record is not None:
        return f"state    being trained by {claims.describe(record)}"
    failed = folder.failure()
    if failed is not None and not plan.config.retry_failed:
        return f"state    failed: {failed.get('error')}; retry_failed=true trains it again"
    done = steps_done(plan)
    whole = seconds_of_training(plan)
    left = duration(whole * (steps - done) / steps)
    begun = f"step {done:,} of {steps:,} is done; " if done else ""
    what = "to do" if failed is None else f"failed before ({failed.get('error')}), to do again"
    return f"state    {what}; {begun}about {left} left on this machine, evaluation apart"


def stale(path: Path) -> str:
    """What to say of a finished student that is `Plan.stale`."""
    return (
        f"its teacher has been trained again since and has other weights; "
        f"`lsexp runs rm {path.name}{elsewhere(path.parent)}`, and it is trained again too"
    )


def steps_done(plan: Plan) -> int:
    """Steps that the checkpoint of an unfinished run would save, or of a training aside."""
    if plan.config.resume == "restart":
        return 0
    for path in plan.trained_in().checkpoints():
        with contextlib.suppress(*UNREADABLE):
            step = int(plan.checkpoint(path)["member"]["step"])
            if not any(at <= step for at in plan.lacking(path.parent)):
                return step
    return 0


def seconds_of_training(plan: Plan, *, measure_seconds: float = 1.5) -> float:
    """Estimated seconds of training for a run from its start, from a short measurement here.

    What a teacher says of images that it sees in one way is computed before, once, and not in it.

    Raises:
        UserError: the device is not there.
    """
    resolve_device(plan.config.device)
    with stream(plan.device):
        images = plan.images("train")
        member = Member(_taught_by_labels(plan.config), images, plan.dataset.num_classes)
        advance = stepper(member, capture=plan.config.capture, exact=not plan.config.fast)
        # On a GPU as many as a graph may have.
        count = 1 if plan.device.type == "cpu" else min(MOST_STEPS, len(member.losses_S) - 1)
        advance(1)
        times: list[float] = []
        while not times or (sum(times) < measure_seconds and len(times) < 50):
            member.reset_sums()
            times.append(seconds_of(partial(advance, count), plan.device) / count)
        taught = 0.0 if plan.teaching is None else seconds_of_pass(plan)
    return (float(np.median(times)) + taught) * plan.config.train.steps


def device_memory(plans: Sequence[Plan]) -> tuple[float, float]:
    """Bytes: free on the GPU, less a tenth and 1 GB for a process; and what the neediest of these
    runs takes there, in training and in evaluation, with a tenth more."""
    device = plans[0].device
    needed = 0.0
    for plan in plans:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        seconds_of_training(plan, measure_seconds=0)
        with stream(device):
            images = plan.images("test")
            member = Member(_taught_by_labels(plan.config), images, plan.dataset.num_classes)
            logits_of(member.model, member.preprocess, images)
        needed = max(needed, 1.1 * (torch.cuda.max_memory_reserved(device) - before))
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(0.0, 0.9 * free - 1e9), needed


def _taught_by_labels(config: TrainConfig) -> TrainConfig:
    """For timing: a student without its teacher, which may not be trained yet."""
    if not isinstance(config.loss, DistillationConfig):
        return config
    return replace(config, loss=LossConfig(scale=config.loss.scale))


def _size_of_subset(config: TrainConfig, dataset: Dataset, splits: Splits) -> int | None:
    """None where the subset is everything, so that both spellings are one experiment."""
    everything = len(dataset.arrays.train_labels) - len(splits.val)
    return None if config.data.train_size == everything else config.data.train_size


def _steps(config: TrainConfig, images: int) -> StepsConfig:
    if config.train.epochs is None:
        return config.train
    steps = max(1, round(config.train.epochs * images / config.train.batch_size))
    return replace(config.train, steps=steps, epochs=None)


def _check_windows(config: TrainConfig, dataset: Dataset) -> None:
    size, augment = min(dataset.image_shape[:2]), config.augment
    if augment.shift >= size:
        raise UserError(
            f"augment.shift={augment.shift}: must be below {size}, the size of the images "
            f"of {dataset.name}"
        )
    if augment.crop is not None and augment.crop > size:
        raise UserError(
            f"augment.crop={augment.crop}: must be at most {size}, the size of the images "
            f"of {dataset.name}; null takes whole images"
        )


def _check_names(config: TrainConfig, dataset: Dataset) -> None:
    """Layer names in optim.* must exist: told before anything is written."""
    rng = torch.Generator()
    shape = input_shape(dataset.image_shape, config.augment)
    model = build_model(config.model, shape, dataset.num_classes, rng, rng)
    parameter_groups(model, config.optim)


def _precision(
    config: TrainConfig,
    dataset: Dataset,
    splits: Splits,
    device: torch.device,
    source: dict[str, str],
    *,
    remember: bool,
) -> str:
    """`auto` resolved by timing, once a network and class of machine, remembered in runs_dir.

    Remembered, because precision is part of a run's identity: a busy moment must not give the
    same command another run.
    """
    size = input_shape(dataset.image_shape, config.augment)
    shape = [config.train.batch_size, *size, dataset.num_classes]
    network = {**asdict(config.model), **source}
    folder = runs_folder(config.runs_dir) / ".precision"
    if device.type == "cuda" and not torch.cuda.is_available():
        answers = _known_elsewhere(folder, [network, shape])
        if len(answers) != 1:
            resolve_device(device.type)  # which says that it is not here
        return answers.pop()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_class()
    key = json.dumps([where, str(torch.__version__), network, shape], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    path = folder / f"{name}.json"
    known = _known_precision(path)
    if known is not None:
        return known
    arrays = dataset.arrays
    some = splits.train[: 4 * config.train.batch_size]

    def build(precision: str) -> Member:
        trial = replace(_taught_by_labels(config), precision=precision)
        return Member(trial, images, dataset.num_classes)

    with stream(device):
        images = Images.on(device, arrays.train_images, arrays.train_labels, some)
        found = choose_precision(build)
    if remember:
        answer = {"precision": found, "of": key}
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            clear(path.parent)
            # Where another process was first, its answer stands, unless it cannot be read.
            if not create_exclusively(path, answer):
                first = _known_precision(path)
                if first is None:
                    replace_file(path, json.dumps(answer))
                found = first or found
    return found


def _known_elsewhere(folder: Path, like: list[Any]) -> set[str]:
    """What was found for this network and shape on any machine."""
    found = set()
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            of = json.loads(json.loads(path.read_text())["of"])
            precision = _known_precision(path)
            if of[2:] == like and precision is not None:
                found.add(precision)
    return found


def _known_precision(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text())["precision"]
        return str(known) if known in ("fp32", "bf16") else None
    return None
