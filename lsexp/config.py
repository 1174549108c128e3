"""What can be trained: every key a user may type, with its type, range, unit and meaning.

One dataclass a section. The same declaration gives Hydra its types, `check` its ranges,
`--help` its text and `runs/identity.py` the fields that decide a result: a key declared
`aside=True` (where, with how many threads, what is kept) does not.
Sections of the paper in the comments are those of arXiv 1906.02629 v3.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from lsexp.errors import UserError
from lsexp.text import user_path

MISSING = "???"
"""OmegaConf's word for a value that must be given; importing it would cost every --help 50 ms."""

TABLES = ("optim.lr_scale", "model.args", "launcher.sbatch")
"""Keys that hold names of the user's choosing."""


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    more_than: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    aside: bool = False,
    **neutral: Any,
) -> Any:
    """A config field: its default, what it means (with unit) and what is allowed.

    `aside=True`: does not decide the result and is no part of a run's identity.
    `neutral=VALUE`: for a key added later; at this value runs keep the names they had before.
    """
    bounds = {"at_least": at_least, "more_than": more_than, "at_most": at_most, "below": below}
    metadata = {
        "doc": doc,
        "choices": choices,
        "bounds": {name: bound for name, bound in bounds.items() if bound is not None},
        "aside": aside,
        **neutral,
    }
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    # Name, path and image_size are aside: the content digest is in the identity instead.
    name: str = key("digits", "data set; npz and imagefolder go with data.path", aside=True)
    path: str | None = key(
        None,
        "data=npz: a file with x_train, y_train, x_test, y_test (Keras' layout); "
        "data=imagefolder: a folder with train/<class>/ and test/<class>/ of images",
        aside=True,
    )
    image_size: int | None = key(
        None,
        "data=imagefolder: pixels; images are resized (shorter side) and cropped (centre) to this "
        "size at import; null: 32",
        at_least=1,
        at_most=1024,
        aside=True,
    )
    url: str | None = key(
        None,
        "download from here instead of the mirrors: an address or a local path, of the archive "
        "or of the folder that holds it",
        aside=True,
    )
    split: str = key(
        "holdout",
        "holdout: a fifth of the training images (at most 10,000) becomes val, as in the paper; "
        "full: train on all of them, no val",
        choices=("holdout", "full"),
    )
    split_seed: int = key(0, "draws the split; no run seed moves it", at_least=0, below=2**32)
    train_size: int | None = key(
        None, "train on a stratified subset of this many images; null: all", at_least=1
    )
    normalize: str = key(
        "unit",
        "unit: pixels to [0, 1]; channel: minus mean, by std of the training images; "
        "image: each image to mean 0, std 1",
        choices=("unit", "channel", "image"),
    )


@dataclass
class AugmentConfig:
    shift: int = key(
        0,
        "pixels: shift by up to this much in x and y, all shifts alike, zeros moving in (pad by it "
        "and crop a random window of the old size)",
        at_least=0,
    )
    crop: int | None = key(
        None,
        "pixels: train on a random window of this size, evaluate on the central one; null: whole "
        "images",
        at_least=1,
        neutral=None,
    )
    flip: bool = key(False, "mirror left and right with probability 1/2", neutral=False)
    brightness: float = key(
        0.0,
        "add up to this much, more or less, to all pixels of an image (of 255)",
        at_least=0,
        at_most=255,
        neutral=0.0,
    )
    contrast: float = key(
        0.0,
        "multiply each channel's deviation from its mean by 1 plus or minus up to this",
        at_least=0,
        at_most=1,
        neutral=0.0,
    )


@dataclass
class ModelConfig:
    name: str = key("mlp", "the network, in the names of runs")


@dataclass
class MLPConfig(ModelConfig):
    widths: list[int] = key(
        [1200, 1200], "hidden layers' widths; ReLU after each", at_least=1, at_most=16384
    )
    dropout: float = key(
        0.0, "probability of dropping a hidden activation in training", at_least=0, below=1
    )
    init_std: float | None = key(
        None, "std of the Gaussian that draws the weights; null: sqrt(2 / inputs) (He)", more_than=0
    )


@dataclass
class AlexNetConfig(ModelConfig):
    name: str = key("alexnet", "the network, in the names of runs")


@dataclass
class ResNetConfig(ModelConfig):
    name: str = key("resnet56", "the network, in the names of runs")
    depth: int = key(
        56, "layers, 6n + 2: n blocks in each of three groups", at_least=8, at_most=1202
    )
    stem_width: int = key(16, "filters of the first convolution", at_least=1, at_most=4096)
    stem_kernel: int = key(3, "size of its filters, odd, in pixels", at_least=1, at_most=15)
    widths: list[int] = key([32, 64, 128], "filters of the three groups", at_least=1, at_most=4096)


@dataclass
class CustomConfig(ModelConfig):
    name: str = key("custom", "the network, in the names of runs")
    target: str = key(
        "",
        "package.module:build, called as build(num_classes=K), and image_shape=(H, W, C) if it "
        "takes that; gives an nn.Module",
    )
    args: dict[str, Any] = key(
        {}, "what else to call it with: numbers, words, true or false, e.g. {width: 64}"
    )
    head: str | None = key(
        None,
        "dotted name of the last nn.Linear; null: what the network's own attribute `head` "
        "says, else the last that it runs",
    )


@dataclass
class TorchvisionConfig(ModelConfig):
    name: str = key("resnet18", "which of torchvision's classifiers; they start untrained")
    stem: str = key(
        "imagenet",
        "imagenet: as published, for images of 224 pixels; small: first convolution 3 x 3 with "
        "stride 1, no pooling behind it",
        choices=("imagenet", "small"),
    )


@dataclass
class LossConfig:
    eps: float = key(
        0.0, "label smoothing; alpha in the paper; 0: hard labels", at_least=0, below=1
    )
    spread: str = key(
        "uniform",
        "uniform: eps / K to every class (the paper, PyTorch); "
        "others: eps / (K - 1) to the wrong classes",
        choices=("uniform", "others"),
    )
    scale: float = key(1.0, "factor on the loss (the paper's 3 on CIFAR)", more_than=0)


@dataclass
class DistillationConfig(LossConfig):
    teacher: str = key(
        "",
        "finished run that teaches: its folder, its name, or the beginning of its 12 hex",
        aside=True,
    )
    teacher_step: int | None = key(
        None, "teach with its snapshot after so many steps; null: its final weights", at_least=0
    )
    temperature: float = key(
        1.0, "of the teacher's probabilities: softmax(logits / temperature)", more_than=0
    )
    student_temperature: str = key(
        "1",
        "1: the student's probabilities are its own (this paper); tied: of the same temperature "
        "(Hinton et al. 2015, Chandrasegaran et al. 2022)",
        choices=("1", "tied"),
    )
    t_squared: bool = key(
        False, "multiply the teacher's part by temperature squared (Hinton et al. 2015)"
    )
    match: str = key(
        "cross_entropy",
        "cross_entropy: of probabilities; logits: half the squared distance of logits (this "
        "paper's MNIST toy)",
        choices=("cross_entropy", "logits"),
    )
    beta: float = key(
        1.0,
        "share of the teacher's part in the loss; the rest is that of the labels (this paper: 1, "
        "MNIST toy 0.6)",
        more_than=0,
        at_most=1,
    )
    view: str = key(
        "student",
        "student: the teacher sees the student's crop and flip, the whole image where the student "
        "sees a crop of it; fresh: an augmentation of its own, as when it was trained",
        choices=("student", "fresh"),
    )
    teachers: str | None = key(
        None, "sweep distillation: recipe of the teachers; null: that of the student", aside=True
    )
    teachers_dropout: float | None = key(
        None,
        "sweep distillation: dropout of teachers of hard labels (this paper's MNIST toy); null: "
        "as their recipe says",
        at_least=0,
        below=1,
        aside=True,
    )


@dataclass
class OptimConfig:
    lr: float = key(0.1, "learning rate at the start", more_than=0)
    lr_scale: dict[str, float] = key(
        {}, "layer name to factor on its rate, e.g. {head: 0.1}", more_than=0
    )
    momentum: float = key(0.0, "of SGD", at_least=0, below=1)
    dampening: float = key(
        0.0, "of SGD; equal to momentum: the gradient is averaged", at_least=0, at_most=1
    )
    nesterov: bool = key(False, "Nesterov momentum; needs dampening 0")
    weight_decay: float = key(
        0.0, "L2 penalty: adds this times the weight to its gradient", at_least=0
    )
    decay: list[str] = key(
        ["*.weight"], "names of the parameters that decay; * stands for anything"
    )
    clip_norm: float | None = key(
        None, "clip the gradient of all parameters together to this norm; null: no", more_than=0
    )
    clip_decay: bool = key(
        False,
        "the norm that is clipped is that of the gradient with the decay's share in it, as in "
        "tensor2tensor, where the decay is part of the loss",
        neutral=False,
    )
    schedule: str = key(
        "constant",
        "constant; linear: to 0 over train.steps; step: times decay_factor at each milestone",
        choices=("constant", "linear", "step"),
    )
    milestones: list[float] = key(
        [], "schedule=step: fractions of train.steps", more_than=0, below=1
    )
    decay_factor: float = key(0.1, "schedule=step: factor at each milestone", more_than=0)


@dataclass
class StepsConfig:
    steps: int = key(1000, "batches to train for", at_least=1, below=2**31)
    epochs: float | None = key(
        None, "instead of train.steps: passes over the training images", more_than=0, at_most=1e6
    )
    batch_size: int = key(128, "images in a batch", at_least=1, at_most=65536)
    evals: int | None = key(
        None,
        "evaluate on val about this many times, evenly over the training; null: after each pass",
        at_least=1,
        neutral=None,
    )


@dataclass
class Budget:
    """How much of a recipe is trained; a table `budgets` inside each recipe."""

    steps: int = key(MISSING, "train.steps")
    train_size: int | None = key(None, "data.train_size")


@dataclass
class ArtifactsConfig:
    tensorboard: bool = key(True, "write TensorBoard scalars", aside=True)
    snapshots: int = key(
        0,
        "keep the weights this many times, start and end among them: dense early, then even; a "
        "finished run that lacks them is trained again aside, and must end in the same weights",
        at_least=0,
        at_most=1000,
        aside=True,
    )
    checkpoint_seconds: float = key(
        30.0,
        "seconds between checkpoints within an epoch; each epoch's end makes one too, "
        "at most one a second, and for at most a fiftieth of the time",
        at_least=0,
        aside=True,
    )


@dataclass
class TrainConfig:
    """Everything `lsexp train` takes."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: StepsConfig = field(default_factory=StepsConfig)
    seed: int = key(0, "draws init, order, augmentation and dropout", at_least=0, below=2**31)
    precision: str = key(
        "auto",
        "auto: bf16 where a timed step says that it pays, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    device: str = key("auto", "auto, cpu, cuda", choices=("auto", "cpu", "cuda"), aside=True)
    capture: bool = key(
        True, "on a GPU, replay steps as CUDA graphs; false: take them one by one", aside=True
    )
    fast: bool = key(
        False,
        "on a GPU, also kernels whose last bits differ from run to run; the weights then too",
        aside=True,
    )
    threads: int | None = key(
        None, "CPU threads; null: one per core", at_least=1, at_most=1024, aside=True
    )
    data_dir: str | None = key(
        None, "data sets; default $LSEXP_DATA_DIR, else the user's cache folder", aside=True
    )
    runs_dir: str | None = key(None, "run folders; default $LSEXP_RUNS_DIR, else runs", aside=True)
    artifacts: ArtifactsConfig = field(default_factory=ArtifactsConfig)
    resume: str = key(
        "exact",
        "exact: only if the weights come out as undisturbed; any: also on other hardware; "
        "restart: from step 0",
        choices=("exact", "any", "restart"),
        aside=True,
    )
    retry_failed: bool = key(False, "train a run again that has failed", aside=True)
    claim_timeout: float = key(
        30.0,
        "seconds that another process's claim on a run must stand still to be taken over",
        at_least=5,
        aside=True,
    )
    budgets: dict[str, Budget] = field(default_factory=dict, metadata={"aside": True})
    # A default Budget would refuse to become a reference into the table.
    budget: Any = field(default=MISSING, metadata={"aside": True})


@dataclass
class LauncherConfig:
    """Where a sweep is trained; this one: on this machine."""


@dataclass
class SlurmConfig(LauncherConfig):
    """As an array of jobs of a Slurm cluster."""

    runs_per_job: int = key(
        8, "a job for so many runs; who is done takes over from others", at_least=1, at_most=10_000
    )
    jobs_at_once: int | None = key(
        None, "jobs that may run at the same time; null: all", at_least=1, at_most=10_000
    )
    gpus_per_node: int = key(
        0, "GPUs of a job, which trains on one; 0: on CPUs", at_least=0, at_most=1
    )
    cpus_per_task: int | None = key(
        None,
        "cores of a job; null: one for each thread of its runs, 4 beside a GPU",
        at_least=1,
        at_most=1024,
    )
    mem_gb: float | None = key(
        None, "GB of memory of a job; null: what the cluster gives", at_least=0.1, at_most=1e5
    )
    timeout_min: int = key(
        240, "minutes; then a job is put back and goes on later", at_least=1, at_most=10**6
    )
    signal_delay_s: int = key(
        120,
        "seconds before that limit at which its runs make a checkpoint",
        at_least=10,
        at_most=3600,
    )
    requeues: int = key(
        100, "times that a job is put back at its limit", at_least=0, at_most=10_000
    )
    partition: str | None = key(None, "of the cluster; null: its default")
    account: str | None = key(None, "who pays; null: the user's default")
    qos: str | None = key(None, "quality of service; null: the default")
    constraint: str | None = key(None, "features that a node must have")
    setup: list[str] = key([], "shell commands before a job begins, e.g. ['module load cuda']")
    sbatch: dict[str, Any] = key({}, "any other options of sbatch, e.g. {reservation: mine}")
    images_per_second: float | None = key(
        None,
        "images a second that a job trains on, all its runs together, for the estimate; null: on "
        "CPUs as measured here",
        more_than=0,
        at_most=1e12,
    )


LAUNCHERS: dict[str, type[LauncherConfig]] = {"local": LauncherConfig, "slurm": SlurmConfig}
"""Kinds of launchers; the files in configs/launcher choose among them."""


@dataclass
class SweepConfig(TrainConfig):
    """Everything `lsexp sweep` takes beside the keys of a study."""

    workers: int | None = key(
        None,
        "processes that train; null: as many as there are cores for their threads, one on a GPU; "
        "with launcher=slurm those of a job",
        at_least=1,
        at_most=1024,
        aside=True,
    )
    members: int | None = key(
        None,
        "runs that a process trains at once on a GPU; null or auto: as many as its memory has room "
        "for, up to 8; on a CPU one",
        at_least=1,
        at_most=32,
        aside=True,
    )
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    study: Any = field(default=MISSING, metadata={"aside": True})


FOREIGN = (TorchvisionConfig, CustomConfig)
"""Networks that are not ours: they may draw from torch's own generator; a process has one."""

MODELS: dict[str, type[ModelConfig]] = {
    "mlp": MLPConfig,
    "alexnet": AlexNetConfig,
    "resnet": ResNetConfig,
    "torchvision": TorchvisionConfig,
    "custom": CustomConfig,
}
"""Kinds of networks; the files in configs/model choose among them."""
LOSSES: dict[str, type[LossConfig]] = {
    "smoothing": LossConfig,
    "distillation": DistillationConfig,
}
"""Kinds of losses; the files in configs/loss choose among them."""


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield (dotted name, field, value) of every key that `key` declared, in order."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value) and not item.metadata:
            yield from walk(value, f"{prefix}{item.name}.")
        elif "doc" in item.metadata:
            yield f"{prefix}{item.name}", item, value


def revived(values: dict[str, Any]) -> TrainConfig:
    """The config that `walk` gave these names and values of; what they do not name is left at its
    default."""

    def kind(section: str, kinds: Iterable[type[Any]]) -> Any:
        """The smallest of the section's kinds that has all keys."""
        own = {name.partition(".")[2] for name in values if name.startswith(f"{section}.")}
        fitting = [one for one in kinds if own <= {item.name for item in fields(one)}]
        return min(fitting, key=lambda one: len(fields(one)))()

    config = TrainConfig(model=kind("model", MODELS.values()), loss=kind("loss", LOSSES.values()))
    for name in [name for name, _, _ in walk(config) if name in values]:
        section, _, last = name.rpartition(".")
        setattr(getattr(config, section) if section else config, last, values[name])
    return config


def allowed(item: dataclasses.Field) -> str:
    """What a key accepts, in words: `"at least 0 and below 1"`; empty if anything goes."""
    if item.metadata["choices"]:
        return " or ".join(item.metadata["choices"])
    words = [f"{name.replace('_', ' ')} {bound}" for name, bound in item.metadata["bounds"].items()]
    return " and ".join(words)


def check_fields(config: Any, help_command: str = "lsexp train --help") -> None:
    """Raise UserError for the first key of a dataclass that is out of its range by itself."""
    for name, item, value in walk(config):
        values = list(value.values()) if isinstance(value, dict) else value
        for one in values if isinstance(values, list) else [values]:
            if one is not None and not _fits(one, item):
                rule = allowed(item) or "a plain value"
                if isinstance(one, float) and not math.isfinite(one):
                    rule = f"finite, {rule}"
                raise UserError(f"{name}={one}: must be {rule}; `{help_command}`")


def check(config: TrainConfig) -> None:
    """Raise UserError for the first key whose value is out of range, naming it."""
    check_fields(config)
    optim = config.optim
    if optim.nesterov and (optim.momentum == 0 or optim.dampening != 0):
        raise UserError(
            f"optim.nesterov=true: needs optim.momentum above 0 and optim.dampening=0, "
            f"not {optim.momentum:g} and {optim.dampening:g}"
        )
    if optim.dampening > 0 and optim.momentum == 0:
        raise UserError(
            f"optim.dampening={optim.dampening:g}: does nothing without momentum; set it to 0, or "
            f"optim.momentum above 0"
        )
    if optim.schedule == "step" and not optim.milestones:
        raise UserError("optim.schedule=step: needs optim.milestones, e.g. [0.5,0.75]")
    _check_model(config.model)
    if isinstance(config.loss, DistillationConfig):
        _check_distillation(config.loss)
    if optim.clip_decay and optim.clip_norm is None:
        raise UserError("optim.clip_decay=true: goes with optim.clip_norm")


def _check_distillation(loss: DistillationConfig) -> None:
    if not loss.teacher:
        raise UserError(
            "loss.teacher: loss=distillation needs a teacher, a finished run; `lsexp runs` lists "
            "them"
        )
    user_path("loss.teacher", loss.teacher)  # it may be a folder, of a user who does not exist
    if loss.teachers is not None and not loss.teachers:
        raise UserError("loss.teachers=: must be the name of a recipe, or null")
    if loss.beta == 1 and loss.eps:
        raise UserError(
            f"loss.eps={loss.eps:g}: smooths labels, which do not count at loss.beta=1; it is the "
            f"teacher that is smoothed"
        )
    softened = [
        word
        for word, usual in (
            (f"loss.temperature={loss.temperature:g}", loss.temperature == 1),
            (
                f"loss.student_temperature={loss.student_temperature}",
                loss.student_temperature == "1",
            ),
            ("loss.t_squared=true", not loss.t_squared),
        )
        if not usual
    ]
    if loss.match == "logits" and softened:
        raise UserError(f"{softened[0]}: loss.match=logits compares logits as they are")
    if loss.temperature == 1 and loss.t_squared:
        raise UserError("loss.t_squared=true: does nothing at loss.temperature=1")


def _check_model(model: ModelConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", model.name):
        raise UserError(
            f"model.name={model.name}: must be letters, digits, _ and ., since runs are named by it"
        )
    kind = next(kind for kind, config in MODELS.items() if config is type(model))
    own: tuple[str, ...] = (kind,)
    if isinstance(model, ResNetConfig):
        own = (f"resnet{model.depth}", f"resnet{model.depth}_thin")
    if kind not in ("custom", "torchvision") and model.name not in own:
        raise UserError(
            f"model.name={model.name}: names are set by the network; choose it with model="
        )
    if isinstance(model, MLPConfig) and not model.widths:
        raise UserError("model.widths=[]: must name at least one hidden layer, e.g. [1200,1200]")
    if isinstance(model, ResNetConfig):
        if model.depth % 6 != 2:
            raise UserError(f"model.depth={model.depth}: must be 6n + 2, e.g. 20, 56 or 110")
        if len(model.widths) != 3:
            raise UserError(f"model.widths={model.widths}: must be three, e.g. [32,64,128]")
        if model.stem_kernel % 2 == 0:
            raise UserError(f"model.stem_kernel={model.stem_kernel}: must be odd, e.g. 3 or 7")
    if isinstance(model, CustomConfig) and not re.fullmatch(r"\w+(\.\w+)*:\w+", model.target):
        raise UserError(
            f"model.target={model.target}: must be package.module:build, a function or class in "
            f"a module that Python finds from here"
        )


def _fits(value: Any, item: dataclasses.Field) -> bool:
    if isinstance(value, list | dict):  # within a list or table: lists do not nest here
        return False
    if item.metadata["choices"]:
        return value in item.metadata["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    bounds = item.metadata["bounds"]
    return (
        ("at_least" not in bounds or value >= bounds["at_least"])
        and ("more_than" not in bounds or value > bounds["more_than"])
        and ("at_most" not in bounds or value <= bounds["at_most"])
        and ("below" not in bounds or value < bounds["below"])
    )
