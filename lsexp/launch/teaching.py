"""Which finished run teaches a student, and how it sees the student's images."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lsexp.config import AugmentConfig, DistillationConfig, TrainConfig, revived
from lsexp.data import Dataset
from lsexp.data.batches import Batches, Images, input_shape
from lsexp.errors import UserError
from lsexp.measure import Network, Viewed, Views, measure
from lsexp.runs.catalog import Entry, read_runs
from lsexp.runs.identity import digest
from lsexp.runs.store import RunFolder, runs_folder
from lsexp.training import teacher

if TYPE_CHECKING:
    from lsexp.launch.plan import Plan


@dataclass(frozen=True)
class Teaching:
    """The teacher of a planned student; it may not be trained yet.

    Attributes:
        path: its run folder.
        config: what it is, or will be, trained by.
        identity: 12 hex of its science.
    """

    path: Path
    config: TrainConfig
    identity: str

    @staticmethod
    def planned(plan: Plan) -> Teaching:
        return Teaching(plan.folder.path, plan.config, digest(plan.identity))

    def record(self, step: int | None) -> dict[str, Any]:
        """For the student's metrics: what taught, by its weights."""
        weights = RunFolder(self.path).metrics()["checksums"]["model.safetensors"]
        return {"run": self.path.name, "step": step, "weights": weights}


def find_teacher(config: TrainConfig, dataset: Dataset) -> Teaching:
    """The finished run that `loss.teacher` names.

    Raises:
        UserError: none or several are of that name, it is not finished, or it was trained on other
            data.
    """
    loss = config.loss
    assert isinstance(loss, DistillationConfig)
    typed = loss.teacher
    path = Path(typed).expanduser()
    if not (path / "config.yaml").is_file():
        runs_dir = runs_folder(config.runs_dir)
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
            f"loss.teacher={typed}: is not finished; `lsexp runs show {path.name}` tells how it "
            f"stands",
            exit_code=1,
        )
    metrics = folder.metrics()
    if metrics["identity"]["data.digest"] != dataset.digest:
        raise UserError(
            f"loss.teacher={typed}: was trained on {metrics['config']['data.name']}, other data "
            f"than this {dataset.name}",
            exit_code=1,
        )
    return Teaching(path, revived(metrics["config"]), digest(metrics["identity"]))


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
            # One thread: whoever asks first gets the bits that all others do.
            found = measure(taught.path, asked, config.data_dir, threads=1).values()
            logits = [one.logits_NK for one in found if isinstance(one, Viewed)]
            assert all(np.array_equal(one.indices_N, plan.splits.train) for one in found)
            return teacher.Table(torch.from_numpy(np.stack(logits)).to(plan.device))
        metrics = RunFolder(taught.path).verified_metrics()
        network = Network(taught.path, metrics, config.data_dir, threads=threads)
        network.model(None)  # which compares it with its recorded logits
        model = network.model(step).to(plan.device)
    finally:
        torch.set_num_threads(threads)
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
    inputs = network.preprocess._replace(crop=None)
    return teacher.Network(model, inputs, config.precision, own)
