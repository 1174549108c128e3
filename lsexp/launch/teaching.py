"""Which finished run teaches a student, and how it sees the student's images."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lsexp.config import AugmentConfig, DistillationConfig, TrainConfig, revived
from lsexp.data import Dataset
from lsexp.data.batches import Batches, Images, Preprocess, input_shape
from lsexp.errors import UserError
from lsexp.files import sha256_of
from lsexp.measure import Network, Viewed, Views, measure
from lsexp.models import build_model
from lsexp.runs.catalog import Entry, is_run, read_run, read_runs
from lsexp.runs.identity import digest, looks_like_a_name
from lsexp.runs.store import RunFolder, elsewhere, kept_snapshots, runs_folder
from lsexp.text import user_path
from lsexp.training import teacher
from lsexp.training.hardware import prepare, seconds_of

if TYPE_CHECKING:
    from lsexp.launch.plan import Plan


@dataclass(frozen=True)
class Teaching:
    """The teacher of a planned student; it may not be trained yet.

    Attributes:
        path: its run folder.
        config: what it is, or will be, trained by.
        identity: 12 hex of its science; data: the digest of its images.
    """

    path: Path
    config: TrainConfig
    identity: str
    data: str

    @staticmethod
    def planned(plan: Plan) -> Teaching:
        return Teaching(plan.folder.path, plan.config, digest(plan.identity), plan.dataset.digest)

    def record(self, student: Path, step: int | None) -> dict[str, Any]:
        """For the student's metrics: what teaches, by the checksums of its final weights and of the
        snapshot that is used (None: the final ones)."""
        folder = RunFolder(self.path)
        if step is not None and not folder.snapshot(step).is_file():
            raise _no_snapshot(self.path, step)
        beside = self.path.resolve().parent == student.resolve().parent
        return {
            "run": self.path.name if beside else str(self.path.resolve()),
            "step": step,
            "weights": folder.metrics()["checksums"]["model.safetensors"],
            "snapshot": None if step is None else sha256_of(folder.snapshot(step)),
        }


def find_teacher(config: TrainConfig) -> Teaching:
    """The finished run that `loss.teacher` names.

    Raises:
        UserError: none or several are of that name, or it is not finished.
    """
    loss = config.loss
    assert isinstance(loss, DistillationConfig)
    typed = loss.teacher
    runs_dir = runs_folder(config.runs_dir)
    # A name is of the folder of runs, whatever is called so in the working folder.
    path = user_path("loss.teacher", typed) if os.sep in typed else runs_dir / typed
    if os.path.islink(path) and not looks_like_a_name(path.name):  # noqa: PTH114 (closed folders)
        path = path.resolve()
    if not is_run(path):
        found: list[Entry] = []
        with contextlib.suppress(UserError):  # of none that begins so
            found = read_runs(str(runs_dir), [typed])
        exact = [one for one in found if one.name == typed]
        names = ", ".join(one.name for one in found[:4])
        if len(exact or found) != 1:
            raise UserError(
                f"loss.teacher={typed}: fits {len(found) or 'none of the'} runs in {runs_dir}"
                f"{f' ({names})' if names else ''}; `lsexp runs` lists them",
                exit_code=1,
            )
        path = (exact or found)[0].path
    folder = RunFolder(path)
    if not folder.finished():
        raise UserError(
            f"loss.teacher={typed}: is not finished; `lsexp runs show {path.name}"
            f"{elsewhere(path.parent)}` tells how it stands",
            exit_code=1,
        )
    status = read_run(path).status
    if status != "finished":
        raise UserError(
            f"loss.teacher={typed}: is {status}; `lsexp runs show {path.name}"
            f"{elsewhere(path.parent)}` tells more",
            exit_code=1,
        )
    metrics = folder.metrics()
    config, identity = revived(metrics["config"]), metrics["identity"]
    step = loss.teacher_step
    if step not in (None, config.train.steps) and not folder.snapshot(step).is_file():
        raise _no_snapshot(path, step)
    return Teaching(path, config, digest(identity), identity["data.digest"])


def _no_snapshot(path: Path, step: int) -> UserError:
    steps = kept_snapshots(path)
    have = f"it has those of {', '.join(map(str, steps))}" if steps else "it has none"
    return UserError(
        f"loss.teacher_step={step}: {path.name} has no such snapshot; {have}; "
        f"artifacts.snapshots= of its own command makes some",
        exit_code=1,
    )


def can_teach(student: Plan) -> bool:
    """Whether what teaches a planned student is there: a finished run, and its snapshot."""
    taught, loss = student.teaching, student.config.loss
    assert taught is not None
    assert isinstance(loss, DistillationConfig)
    folder, step = RunFolder(taught.path), loss.teacher_step
    return folder.finished() and (step is None or folder.snapshot(step).is_file())


def settled(student: TrainConfig, taught: Teaching, dataset: Dataset) -> TrainConfig:
    """The student's config in one spelling: what changes nothing is as by default.

    Raises:
        UserError: the teacher is of other data, or does not fit the student's view.
    """
    loss, own = student.loss, taught.config
    assert isinstance(loss, DistillationConfig)
    if taught.data != dataset.digest:
        raise UserError(
            f"the teacher {taught.path.name} is of {own.data.name}, other data than the student's "
            f"{dataset.name}",
            exit_code=1,
        )
    views(student, own, dataset.image_shape)
    if loss.temperature == 1:
        loss = replace(loss, student_temperature="1", t_squared=False)
    if loss.beta == 1:  # labels do not count
        loss = replace(loss, spread="uniform")
    if loss.teacher_step == own.train.steps:
        loss = replace(loss, teacher_step=None)
    if loss.view == "fresh" and student.augment == own.augment == AugmentConfig():
        loss = replace(loss, view="student")
    return replace(student, loss=loss)


def views(student: TrainConfig, taught: TrainConfig, shape: tuple[int, int, int]) -> int | None:
    """In how many ways the teacher sees an image (1: as it is, 2: mirrored too), None where it
    sees one anew in every step.

    Args:
        shape: (H, W, C) of the data.

    Raises:
        UserError: the student's view does not fit the teacher.
    """
    loss, augment = student.loss, student.augment
    assert isinstance(loss, DistillationConfig)
    if loss.view == "fresh":
        return None
    sizes = [input_shape(shape, one.augment)[:2] for one in (student, taught)]
    whole = sizes[1] == shape[:2]
    if sizes[0] != sizes[1] and not (whole and augment.shift == 0):
        raise UserError(
            f"loss.view=student: the student sees {sizes[0][0]} pixels of an image and the teacher "
            f"{sizes[1][0]}, which are not around them; loss.view=fresh lets it see its own"
        )
    if whole and augment.shift == 0 and (sizes[0] != sizes[1] or not _colours(augment)):
        return 2 if augment.flip else 1
    return None


def _colours(augment: AugmentConfig) -> bool:
    return bool(augment.brightness or augment.contrast)


def seconds_of_pass(plan: Plan) -> float:
    """What the teacher adds to a step of a planned student, from a short measurement here with an
    untrained network of its kind; 0 where its logits are looked up."""
    taught, shape, batch = plan.teaching, plan.dataset.image_shape, plan.config.train.batch_size
    assert taught is not None
    if views(plan.config, taught.config, shape) is not None:
        return 0.0
    seen, rng = input_shape(shape, taught.config.augment), torch.Generator()
    model = build_model(taught.config.model, seen, plan.dataset.num_classes, rng, rng)
    model = model.to(plan.device).eval()
    height, width, channels = seen
    inputs = torch.zeros(batch, height, width, channels, device=plan.device).permute(0, 3, 1, 2)
    bf16 = plan.config.precision == "bf16"

    def forward() -> None:
        with torch.no_grad(), torch.autocast(plan.device.type, torch.bfloat16, enabled=bf16):
            model(inputs)

    return float(np.median([seconds_of(forward, plan.device) for _ in range(4)][1:]))


def teacher_of(plan: Plan, train: Images) -> teacher.Teacher:
    """The planned student's teacher, which must be finished by now.

    Raises:
        UserError: its files are not as they were published, or its snapshot is not there.
    """
    config, taught = plan.config, plan.teaching
    loss = config.loss
    assert isinstance(loss, DistillationConfig)
    assert taught is not None
    data, step = config.data, loss.teacher_step
    count = views(config, taught.config, plan.dataset.image_shape)
    threads = torch.get_num_threads()
    try:
        if count is not None:
            like = Views(data.split, data.split_seed, data.train_size, flip=False, step=step)
            asked = [like, like._replace(flip=True)][:count]
            found = measure(taught.path, asked, config.data_dir, threads=threads).values()
            logits = [one.logits_NK for one in found if isinstance(one, Viewed)]
            assert all(np.array_equal(one.indices_N, plan.splits.train) for one in found)
            return teacher.Table(torch.from_numpy(np.stack(logits)).to(plan.device))
        metrics = RunFolder(taught.path).verified_metrics()
        network = Network(taught.path, metrics, config.data_dir, threads=threads)
        network.model(None)  # which compares it with its recorded logits
        model = network.model(step).to(plan.device)
    finally:  # measuring sets the process up for itself
        prepare(plan.device, threads, fast=config.fast)
    own = None
    if loss.view == "fresh":
        own = Batches(
            train,
            network.preprocess,
            taught.config.augment,
            batch_size=config.train.batch_size,
            seed=config.seed,
            purpose="teacher",
        )
    shift_C, scale_C = (
        part if part is None else part.to(plan.device)
        for part in (network.preprocess.shift_C, network.preprocess.scale_C)
    )
    inputs = Preprocess(None, shift_C, scale_C)
    return teacher.Network(model, inputs, config.precision, own)
