"""Forward passes over finished runs: logits and features of a split, and the head.

What is measured stays beside the run, in `<run>/measured/`, under a name made of what was asked
and of the weights that it was asked of. Such a file may be deleted; it comes back. So do the
outputs of a run, from its weights.
Also reads what others have measured, as a file of logits.
Nothing trains here. torch and the data are needed for what is not there yet only.
Shape letters: N examples, D features, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lsexp.analysis.calibration import scores
from lsexp.config import CustomConfig, DataConfig, TrainConfig, revived
from lsexp.errors import UserError
from lsexp.files import clear, replace_file, sha256_of
from lsexp.processes import available_memory
from lsexp.runs.catalog import load_outputs
from lsexp.runs.store import Damaged, RunFolder, elsewhere, sealed, snapshot_of
from lsexp.runs.tensors import packed, unpacked
from lsexp.text import plural, say, size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lsexp.data import Dataset

VERSION = 1
"""Raised by hand when the same question would be answered otherwise."""
DRAWS_SEED = -1
"""Of augmented draws; no run has it."""
CHECKED = 100
"""Recorded logits that a network read back must give before it is asked anything."""
OUTPUTS = "outputs.safetensors"
ALIKE = 1e-3
"""How far scores (of 1, or relative to a larger one) may move between kinds of hardware: an image
or two between two classes, not another network."""


class Measurement(NamedTuple):
    """What to measure.

    Attributes:
        split: train, val or test; images as in evaluation, unaugmented.
        classes: of which classes, by index; None: of all.
        per_class: the first so many images of each of these, in the order of the split, which is
            that of their contents and so means nothing; None: all.
        step: of the snapshot after so many updates; None: of the final weights.
    """

    split: str
    classes: tuple[int, ...] | None = None
    per_class: int | None = None
    step: int | None = None


class Measured(NamedTuple):
    """What a network says of some images.

    logits_NK: float32, unscaled; features_ND: float32, the input of the last linear layer;
    labels_N: int64; indices_N: int64, among the canonical images of train and val, or of test;
    weight_KD, bias_K: float32, of that layer (a bias of 0 where it has none).
    """

    logits_NK: np.ndarray
    features_ND: np.ndarray
    labels_N: np.ndarray
    indices_N: np.ndarray
    weight_KD: np.ndarray
    bias_K: np.ndarray


class Draws(NamedTuple):
    """What two logits say of training images under random augmentation (the paper's Figure 6).

    Attributes:
        classes: the two, by index.
        examples: so many images of each at most, as many of one as of the other, those of the
            first class first.
        draws: how often each is augmented anew, as in training. The n-th draw of an image is the
            same for every network and step, and none of any training.
        part: 0: the first images of each class; 1, 2, ...: those behind, so that parts are
            disjoint; no images where there are not `examples` any more.
        step: of the snapshot after so many updates; None: of the final weights.
    """

    classes: tuple[int, int]
    examples: int
    draws: int
    part: int = 0
    step: int | None = None


class Drawn(NamedTuple):
    """difference_NM: logit of the first class minus that of the second, float32, for each image and
    draw, in evaluation mode; labels_N, indices_N: as in `Measured`."""

    difference_NM: np.ndarray
    labels_N: np.ndarray
    indices_N: np.ndarray


class Views(NamedTuple):
    """What a teacher says of the images that a student trains on, each whole.

    Attributes:
        split, split_seed, train_size: the student's `data.` keys, which choose its images.
        flip: mirrored.
        step: of the snapshot after so many updates; None: of the final weights.
    """

    split: str
    split_seed: int
    train_size: int | None
    flip: bool
    step: int | None = None


class Outputs(NamedTuple):
    """What a network says of all images of a split: logits alone. As in `Measurement`."""

    split: str
    step: int | None = None


class Viewed(NamedTuple):
    """logits_NK, labels_N, indices_N: as in `Measured`."""

    logits_NK: np.ndarray
    labels_N: np.ndarray
    indices_N: np.ndarray


Question = Measurement | Draws | Views | Outputs
Answer = Measured | Drawn | Viewed
KINDS: dict[type, tuple[str, Any]] = {
    Measurement: ("", Measured),
    Draws: ("draws", Drawn),
    Views: ("views", Viewed),
    Outputs: ("outputs", Viewed),
}
"""Question to what its file is called (a measurement's after its split) and the kind of answer."""


class Answers(Mapping[Question, Answer]):
    """What was asked of a run, read from beside it when it is looked at.

    Features at many snapshots of many runs may be more than memory holds.
    """

    def __init__(self, files: dict[Question, Path], kept: dict[Question, Answer]):
        self.files = files
        self.kept = kept

    def __getitem__(self, asked: Question) -> Answer:
        found = self.kept.get(asked) or _read(self.files[asked], asked)
        if found is None:
            raise UserError(
                f"{self.files[asked]}: was removed or changed meanwhile; the same command measures "
                f"it again",
                exit_code=1,
            )
        return found

    def __iter__(self) -> Iterator[Question]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def measure(
    path: Path,
    asked: Sequence[Question],
    data_dir: str | None = None,
    threads: int | None = None,
) -> Answers:
    """What is asked of a finished run, read from beside it or measured and left there.

    Args:
        path: the run folder.
        threads: CPU threads, which may move last bits; None: one per core.
        data_dir: where its data set is now; None: where it was then, if that is a folder still,
            else the default.

    Raises:
        UserError: files of the run are missing or changed, the data are not those that it was
            trained on, it has no such snapshot, or the split has no images.
    """
    metrics = RunFolder(path).verified_metrics()
    checksum_of = functools.cache(sha256_of)  # a snapshot is asked several questions
    files = {one: _file(path, one, metrics, checksum_of) for one in asked}
    unknown = [one for one, file in files.items() if _read(file, one) is None]
    kept: dict[Question, Answer] = {}
    if unknown:
        say(f"measuring {path.name}")
        network = Network(path, metrics, data_dir, threads)
        seconds: dict[int | None, float] = {}
        for one in unknown:
            began = time.perf_counter()
            found = network.answer(one)
            seconds[one.step] = seconds.get(one.step, 0) + time.perf_counter() - began
            try:
                files[one].parent.mkdir(exist_ok=True)
                clear(files[one].parent)
                replace_file(files[one], packed(found._asdict(), files[one].stem))
            except OSError:  # a folder that is read-only is measured each time
                kept[one] = found
        say(f"measured {path.name}: {_told(seconds)}")
    return Answers(files, kept)


def evaluate_again(path: Path, data_dir: str | None = None) -> None:
    """Make outputs.safetensors of a finished run again, from its weights.

    Where it was trained, the file is what it was. Other hardware may move last bits of logits:
    metrics.json then takes their scores and the checksum, and its provenance says so.

    Args:
        data_dir: as in `measure`.

    Raises:
        UserError: other files of the run are damaged, its data are not there, or its weights do
            not have the scores that it was finished with.
    """
    from safetensors.numpy import save

    from lsexp.training.hardware import environment

    folder = RunFolder(path)
    metrics = folder.verified_metrics({*folder.metrics()["checksums"]} - {OUTPUTS})
    say(f"evaluating {path.name} again")
    network = Network(path, metrics, data_dir, metrics["config"]["threads"], recorded=False)
    arrays = {"train.indices": network.outputs["train.indices"]}
    then, now = {}, {}
    for split in ("val", "test"):
        if metrics[split] is not None:
            seen = network.whole(Outputs(split))
            then[split], now[split] = metrics[split], scores(seen.logits_NK, seen.labels_N)
            arrays[f"{split}.logits"] = seen.logits_NK
            arrays[f"{split}.labels"] = seen.labels_N
            arrays[f"{split}.indices"] = seen.indices_N
    for split, name in product(now, ("accuracy", "nll")):
        was, found = then[split][name], now[split][name]
        if not abs(found - was) <= ALIKE * max(1.0, was):
            raise UserError(
                f"{path}: its weights give a {split} {name} of {found:.6g} here, it was finished "
                f"with {was:.6g}; `lsexp runs rm {path.name}{elsewhere(path.parent)}`, and it can "
                f"be trained again",
                exit_code=1,
            )
    file = save(arrays)
    replace_file(path / OUTPUTS, file)
    checksum = hashlib.sha256(file).hexdigest()
    if checksum == metrics["checksums"][OUTPUTS]:
        return
    best = metrics["best_val"]
    if best is not None and best["step"] == metrics["steps"]:
        best = {**best, **now}
    here = environment(network.device, "fp32")._asdict()
    again = {
        **metrics,
        **now,
        "best_val": best,
        "checksums": {**metrics["checksums"], OUTPUTS: checksum},
        "provenance": {**metrics["provenance"], "evaluated_again": here},
    }
    replace_file(path / "metrics.json", json.dumps(sealed(again), indent=1, allow_nan=False))


def _told(seconds: dict[int | None, float]) -> str:
    """What a snapshot cost, and what the end.

    >>> _told({0: 1.0, 7: 2.0, None: 4.0})
    '2 snapshots, 1.5 s each; the end 4.0 s'
    """
    on_the_way = [spent for step, spent in seconds.items() if step is not None]
    parts = []
    if on_the_way:
        parts.append(f"{plural(len(on_the_way), 'snapshot')}, {np.mean(on_the_way):.1f} s each")
    if None in seconds:
        parts.append(f"the end {seconds[None]:.1f} s")
    return "; ".join(parts)


def _weights(path: Path, step: int | None) -> Path:
    return path / "model.safetensors" if step is None else RunFolder(path).snapshot(step)


def _file(
    path: Path, asked: Question, metrics: dict[str, Any], checksum_of: Callable[[Path], str]
) -> Path:
    """Where the answer is kept."""
    weights = _weights(path, asked.step)
    checksum = metrics["checksums"].get(weights.relative_to(path).as_posix())
    if checksum is None:
        if not weights.is_file():
            raise UserError(f"{weights}: the run has no such snapshot", exit_code=1)
        checksum = checksum_of(weights)
    what = asked.split if isinstance(asked, Measurement) else KINDS[type(asked)][0]
    question = [VERSION, what, checksum, metrics["identity"]["data.digest"], asked]
    digest = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]
    when = "end" if asked.step is None else f"step-{asked.step}"
    return path / "measured" / f"{what}-{when}-{digest}.safetensors"


def _read(file: Path, asked: Question) -> Answer | None:
    """None where it is not there, or not whole any more."""
    kind = KINDS[type(asked)][1]
    arrays = unpacked(file, file.stem)
    if arrays is None or set(arrays) != set(kind._fields):
        return None
    return kind(**arrays)


def read_logits(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Logits and labels of anybody's network, by split (val, test).

    Args:
        path: .npz with `val_logits` [N, K], `val_labels` [N] (classes by number) and the same of
            test; or `logits` and `labels`, of images held out, which count as val.

    Raises:
        UserError: no such file, or an array that is missing or not of this kind.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"logits={path}: is no file", exit_code=1)
        with contextlib.ExitStack() as stack:
            opened = stack.enter_context(path.open("rb"))
            if not zipfile.is_zipfile(opened):
                raise UserError(f"logits={path}: is no .npz file", exit_code=1)
            opened.seek(0)
            file = stack.enter_context(np.load(opened, allow_pickle=False))
            there = available_memory()
            whole = sum(one.file_size for one in file.zip.infolist())
            if there is not None and whole > there:
                raise UserError(
                    f"logits={path}: holds {size(whole)}, and {size(there)} of memory is free",
                    exit_code=1,
                )
            arrays = {name.replace(".", "_"): file[name] for name in file.files}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"logits={path}: {error.strerror or error}", exit_code=1) from error
    except Exception as error:  # zipfile's, numpy's, pickle's own kinds
        raise UserError(
            f"logits={path}: its arrays cannot be read; they must be of numbers", exit_code=1
        ) from error
    names = {"val": ("val_", ""), "test": ("test_",)}
    found = {}
    for split, prefixes in names.items():
        here = [prefix for prefix in prefixes if f"{prefix}logits" in arrays]
        if len(here) > 1:
            raise UserError(f"logits={path}: has both {here[0]}logits and logits; which are val's?")
        for prefix in here:
            if f"{prefix}labels" not in arrays:
                raise UserError(f"logits={path}: has {prefix}logits but no {prefix}labels")
            pair = arrays[f"{prefix}logits"], arrays[f"{prefix}labels"]
            found[split] = _checked_pair(path, prefix, *pair)
    if not found:
        raise UserError(
            f"logits={path}: must hold val_logits and val_labels, test_logits and test_labels, or "
            f"logits and labels; it holds {', '.join(arrays) or 'nothing'}"
        )
    if len({logits.shape[1] for logits, _ in found.values()}) > 1:
        raise UserError(f"logits={path}: val and test are of different numbers of classes")
    return found


def _checked_pair(
    path: Path, prefix: str, logits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    where = f"logits={path}: {prefix}"
    if logits.ndim != 2 or logits.shape[1] < 2 or not np.issubdtype(logits.dtype, np.floating):
        raise UserError(
            f"{where}logits: must be floating-point [N, K] of two classes or more, not "
            f"{logits.dtype} {logits.shape}"
        )
    if len(logits) < 4:
        raise UserError(f"{where}logits: {len(logits)} examples are too few")
    if not np.isfinite(logits).all():
        raise UserError(f"{where}logits: has values that are not finite")
    if logits.min() >= 0 and np.allclose(logits.sum(1), 1, atol=1e-3):
        raise UserError(f"{where}logits: are probabilities; their logarithms are logits")
    if labels.shape != logits.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{where}labels: must be {len(logits)} whole numbers, one for each row of logits, not "
            f"{labels.dtype} {labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(
            f"{where}labels: must be 0 to {logits.shape[1] - 1}, the columns of logits, not "
            f"{labels.min()} to {labels.max()}"
        )
    return logits, labels.astype(np.int64)


class Network:
    """A run's network and data, ready to be asked; `measure` keeps the answers.

    Args:
        recorded: the run's outputs are there, and its network is compared with them.
    """

    def __init__(
        self,
        path: Path,
        metrics: dict[str, Any],
        data_dir: str | None = None,
        threads: int | None = None,
        *,
        recorded: bool = True,
    ):
        from lsexp.data import load
        from lsexp.data.batches import Images, Preprocess
        from lsexp.training.hardware import default_threads, prepare, resolve_device

        self.path = path
        self.identity = metrics["identity"]
        self.config: TrainConfig = revived(metrics["config"])
        then = self.config.data_dir
        here = data_dir or (then if then is not None and Path(then).is_dir() else None)
        self.dataset: Dataset = load(self.config.data, here)
        if self.dataset.digest != metrics["identity"]["data.digest"]:
            raise UserError(
                f"{path.name}: was trained on other data than {self.dataset.name} holds now "
                f"(data_dir= names another folder of named sets)",
                exit_code=1,
            )
        self._check_source(metrics)
        self.last: tuple[int | None, nn.Module] | None = None
        self.device = resolve_device("auto")
        prepare(self.device, threads or default_threads())
        self.outputs = load_outputs(path) if recorded else self._drawn()
        arrays = self.dataset.arrays
        train = Images.on(
            self.device, arrays.train_images, arrays.train_labels, self.outputs["train.indices"]
        )
        self.preprocess = Preprocess.fit(
            self.config.data.normalize, train, self.config.augment.crop
        )

    def _drawn(self) -> dict[str, np.ndarray]:
        """Which images are of which split, as they were drawn when the run was planned."""
        from lsexp.data import draw_splits

        splits = draw_splits(self.dataset, self.config.data)
        test = np.arange(len(self.dataset.arrays.test_labels))
        of_splits = {"train": splits.train, "val": splits.val, "test": test}
        return {f"{name}.indices": one for name, one in of_splits.items() if len(one)}

    def _check_source(self, metrics: dict[str, Any]) -> None:
        from lsexp.models.foreign import source_digest

        model = self.config.model
        if isinstance(model, CustomConfig):
            now, then = source_digest(model.target), metrics["identity"]["model.source"]
            if now != then:
                raise UserError(
                    f"model.target={model.target}: its source has changed since "
                    f"{self.path.name} was trained; what that network does is not known any more",
                    exit_code=1,
                )

    def answer(self, asked: Question) -> Answer:
        if isinstance(asked, Measurement):
            return self.measure(asked)
        if isinstance(asked, Outputs):
            return self.whole(asked)
        return self.draw(asked) if isinstance(asked, Draws) else self.views(asked)

    def model(self, step: int | None) -> nn.Module:
        """The network after `step` updates; that of the end must give the recorded outputs."""
        if self.last is None or self.last[0] != step:
            self.last = step, self._built(step)
        return self.last[1]

    def _built(self, step: int | None) -> nn.Module:
        import torch
        from safetensors.torch import load_file

        from lsexp.data.batches import generator, input_shape
        from lsexp.models import build_model

        model = build_model(
            self.config.model,
            input_shape(self.dataset.image_shape, self.config.augment),
            self.dataset.num_classes,
            init=generator(0, "init"),
            dropout=generator(0, "dropout"),
        )
        weights = _weights(self.path, step)
        try:
            if step is None:
                tensors = load_file(weights)
            else:
                arrays = unpacked(weights, snapshot_of(self.identity, step))
                if arrays is None:
                    raise ValueError("not as it was written")
                tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            model.load_state_dict(tensors)
        except Exception as error:  # safetensors' own kinds, or another network's
            raise Damaged(weights, f"damaged ({error})", self.path.name) from error
        model = model.to(self.device)
        if step is None and "test.logits" in self.outputs:
            some = np.arange(min(len(self.outputs["test.labels"]), CHECKED))
            logits, _ = self._outputs(model, "test", self.outputs["test.indices"][some])
            self._compare(logits, self.outputs["test.logits"][some])
        return model

    def _outputs(
        self, model: nn.Module, split: str, indices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of the images of a split that have these indices."""
        import torch

        from lsexp.data.batches import Images
        from lsexp.training.evaluate import passes

        here = Images.on(self.device, *self._arrays(split), indices)
        pairs = list(passes(model, self.preprocess, here))
        logits, features = (_array(torch.cat(tensors)) for tensors in zip(*pairs, strict=True))
        return logits, features

    def _arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels among which the indices of a split count."""
        arrays = self.dataset.arrays
        if split == "test":
            return arrays.test_images, arrays.test_labels
        return arrays.train_images, arrays.train_labels

    def whole(self, asked: Outputs) -> Viewed:
        indices = self._indices(asked.split)
        logits, _ = self._outputs(self.model(asked.step), asked.split, indices)
        return Viewed(logits, self._arrays(asked.split)[1][indices], indices)

    def _indices(self, split: str) -> np.ndarray:
        indices = self.outputs.get(f"{split}.indices")
        if indices is None:
            raise UserError(
                f"{self.path.name}: has no {split} images (data.split={self.config.data.split})",
                exit_code=1,
            )
        return indices

    def measure(self, asked: Measurement) -> Measured:
        import torch

        split = asked.split
        indices = self._indices(split)
        labels = self._arrays(split)[1][indices]
        absent = set(asked.classes or ()) - set(labels.tolist())
        if absent:
            names = [self.dataset.arrays.classes[k] for k in sorted(absent)]
            raise UserError(
                f"{self.path.name}: no {split} image is of class {', '.join(names)}; choose other "
                f"classes",
                exit_code=1,
            )
        chosen = _chosen(labels, asked)
        model = self.model(asked.step)
        logits, features = self._outputs(model, split, indices[chosen])
        head = model.get_submodule(str(model.head_name))
        assert isinstance(head, torch.nn.Linear)
        weight = _array(head.weight)
        bias = np.zeros(len(weight), np.float32) if head.bias is None else _array(head.bias)
        return Measured(logits, features, labels[chosen], indices[chosen], weight, bias)

    def views(self, asked: Views) -> Viewed:
        import torch

        from lsexp.data import draw_splits
        from lsexp.data.batches import Images
        from lsexp.models import evaluating
        from lsexp.training.evaluate import BATCH
        from lsexp.training.hardware import one_thread

        images, labels = self._arrays("train")
        data = DataConfig(
            split=asked.split, split_seed=asked.split_seed, train_size=asked.train_size
        )
        which = draw_splits(self.dataset, data).train
        here = Images.on(self.device, images, labels, which)
        model = self.model(asked.step)
        logits: list[Tensor] = []
        # One thread: whoever asks first gets the bits that all others do.
        with one_thread(), torch.no_grad(), evaluating(model):
            for part_BHWC in here.parts(BATCH[self.device.type]):
                seen_BHWC = part_BHWC.flip(2) if asked.flip else part_BHWC
                logits.append(model(self.preprocess(seen_BHWC))[0])
        return Viewed(_array(torch.cat(logits)), labels[which], which)

    def draw(self, asked: Draws) -> Drawn:
        """The same images in every draw, each draw a pass of training's own batches over them."""
        import torch

        from lsexp.data.batches import Batches, Images
        from lsexp.models import evaluating
        from lsexp.training.evaluate import BATCH

        images, labels = self._arrays("train")
        indices = self.outputs["train.indices"]
        of_class = [indices[labels[indices] == k] for k in asked.classes]
        count, start = min(asked.examples, *map(len, of_class)), asked.part * asked.examples
        if count < 2:
            names = " or ".join(self.dataset.arrays.classes[k] for k in asked.classes)
            raise UserError(
                f"{self.path.name}: trained on too few images of class {names}", exit_code=1
            )
        if start + count > min(map(len, of_class)):
            count = 0
        which = np.concatenate([rows[start : start + count] for rows in of_class])
        difference_NM = np.empty((len(which), asked.draws), np.float32)
        if not count:
            return Drawn(difference_NM, labels[which], which)
        here = Images.on(self.device, images, labels, which)
        batches = Batches(
            here, self.preprocess, self.config.augment, batch_size=len(which), seed=DRAWS_SEED
        )
        model, at_once = self.model(asked.step), BATCH[self.device.type]
        first, second = asked.classes
        with torch.no_grad(), evaluating(model):
            for draw in range(asked.draws):
                inputs_NCHW, _ = batches(draw)
                logits_NK = torch.cat([model(part)[0] for part in inputs_NCHW.split(at_once)])
                order_N = batches.epoch(draw).order_N.cpu().numpy()
                difference_NM[order_N, draw] = _array(logits_NK[:, first] - logits_NK[:, second])
        return Drawn(difference_NM, labels[which], which)

    def _compare(self, logits_NK: np.ndarray, recorded_NK: np.ndarray) -> None:
        """Other hardware moves the last bits, no more."""
        scale = float(np.abs(recorded_NK).max())
        furthest = float(np.abs(logits_NK - recorded_NK).max())
        if not furthest <= 1e-3 * scale:
            raise UserError(
                f"{self.path}: the network does not give the logits recorded when it was trained "
                f"(off by {furthest:.3g} of up to {scale:.3g}); `lsexp runs rm {self.path.name}"
                f"{elsewhere(self.path.parent)}`, and it can be trained again",
                exit_code=1,
            )


def _chosen(labels_N: np.ndarray, asked: Measurement) -> np.ndarray:
    """Positions in the split, ascending.

    >>> _chosen(np.array([2, 0, 1, 0, 2, 0]), Measurement("val", (0, 2), 2)).tolist()
    [0, 1, 3, 4]
    """
    classes = np.unique(labels_N) if asked.classes is None else asked.classes
    of_class = [np.flatnonzero(labels_N == k)[: asked.per_class] for k in classes]
    return np.sort(np.concatenate(of_class))


def _array(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.detach().float().cpu().contiguous().numpy()
    return found
