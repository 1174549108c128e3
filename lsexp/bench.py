"""`lsexp bench`: what this machine can do, and how much of it training uses.

The limits are the matrix products and the copies that torch reaches here. A recipe's throughput is
that of the program itself: worker processes train runs of it in a folder that is thrown away, and
what they tell on the way is timed, so that all is in it but evaluation.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from lsexp import compose
from lsexp.config import DistillationConfig, TrainConfig, check
from lsexp.errors import UserError
from lsexp.files import clear, replace_file
from lsexp.sweep.naming import for_path, shortened
from lsexp.text import say, table, taken, user_path

HELP = """\
lsexp bench [recipe=NAME,...] [key=value ...]: speed on this machine

  lsexp bench                                    every recipe, about half a minute each
  lsexp bench recipe=mnist_mlp,cifar10_alexnet
  lsexp bench recipe=cifar10_alexnet precision=fp32 train.batch_size=256

It measures the limits (products of bf16 and fp32 matrices, copies) and how many images a second a
recipe trains, alone (as `lsexp train`) and as a sweep (a worker process for each core, a thread
each), evaluation apart. "Of limit" is the arithmetic of the network's layers as a fraction of what
as many threads reach in products of that precision. A figure is marked ? as unreliable where other
programs kept the machine busy, or where its two halves differ by a tenth. Images of a data set
that is not here are random ones.

On a GPU (device=cuda) it measures steps taken one by one (eager), and replayed as graphs with 1, 2,
4 and 8 runs at once in one process; alone is 1, a sweep the last of them.

  seconds=5         of measuring, for each figure, behind a second of warming up
  workers=N         processes of the sweep (default: as many as there are cores for their threads)
  members=N,...     runs at once on a GPU (default: 1,2,4,8)
  out_dir=FOLDER    or LSEXP_OUT_DIR: where the figures go, as JSON (default: out), to a file of
                    their own for what is typed beside it

Any key of `lsexp train` applies to every recipe; `lsexp train --help` lists them.
"""

WARM_UP_SECONDS = 1.0
BUSY = 0.05
"""Share of the cores' time that others may take before a figure is called unreliable."""
DRIFT = 0.1
"""How much the two halves of a measurement may differ."""
ENDLESS = 2**30
MATRICES = (1024, 2048)
GPU_MATRICES = (4096, 8192)
MEMBERS = (1, 2, 4, 8)
COPY_BYTES = 256_000_000
SHAPES = {
    "mnist": (28, 28, 1, 10),
    "fashion_mnist": (28, 28, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
}
"""(H, W, C, K) of the public sets."""
RANDOM_IMAGES = 15_000


@dataclass
class Figure:
    """A measurement.

    Attributes:
        value: images/s, FLOP/s or bytes/s.
        halves: the same of the first and the second half of the time.
        busy: share of the cores' time that other programs took meanwhile.
        processes, threads: at work, and threads in each.
        members: runs at once in each.
        of_limit: fraction of the matrix products that as many threads reach.
        startup_seconds: from nothing to the first step of the last process.
        unreliable: why, or "".
    """

    value: float
    halves: tuple[float, float]
    busy: float
    processes: int
    threads: int
    members: int = 1
    of_limit: float | None = None
    startup_seconds: float | None = None
    unreliable: str = field(init=False)

    def __post_init__(self) -> None:
        first, second = self.halves
        reasons = []
        if self.busy > BUSY:
            reasons.append(f"other programs took {100 * self.busy:.0f} % of the cores")
        if abs(first - second) > DRIFT * max(first, second):
            reasons.append(f"its halves differ by {100 * abs(second / first - 1):.0f} %")
        self.unreliable = ", ".join(reasons)


Limits = dict[str, dict[int, Figure]]


class _Way(NamedTuple):
    """A way of training that is measured; capture: whether steps are replayed as graphs."""

    name: str
    processes: int
    threads: int
    members: int = 1
    capture: bool = True


def run(words: list[str]) -> int:
    """The command's words after `lsexp bench`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    options, recipes, rest = _split(words)
    configs = []
    for recipe in recipes:
        found = compose.train_configs([f"recipe={recipe}", *rest])
        if "recipe" not in options["typed"]:  # students need a teacher that is trained
            found = [one for one in found if not isinstance(one[0].loss, DistillationConfig)]
        configs += found
    for config, _ in configs:
        check(config)
    if not configs:  # --cfg has printed
        return 0
    from lsexp.training.hardware import default_threads, resolve_device

    device = resolve_device(configs[0][0].device)
    key, other = ("workers", "members") if device.type == "cuda" else ("members", "workers")
    if key in options["typed"]:
        raise UserError(f"{key}: on device={device.type} {other}= is how many run at once")
    with tempfile.TemporaryDirectory(prefix="lsexp-bench-") as scratch:
        for config, chosen in configs if rest else []:  # what was typed may not fit the data
            _check_plan(config, chosen, Path(scratch))
    machine = _machine(device)
    name = "cuda" if device.type == "cuda" else machine["cpu_class"]
    # What was typed is named: some recipes, or other settings, do not replace the whole.
    aside = ("out_dir", "data_dir", "device")
    name += for_path([word for word in words if word.partition("=")[0] not in aside])
    path = options["out_dir"] / "bench" / f"{shortened(name)}.json"
    try:  # before minutes of measuring
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"out_dir={options['out_dir']}: {error.strerror or error}", exit_code=1
        ) from error
    print(
        f"machine  {machine['name']}, class {machine['cpu_class']}, {machine['cores']} cores; "
        f"torch {machine['torch']}",
        flush=True,
    )
    counts = {1}
    for config, _ in configs:
        ways = _ways(config, default_threads(), device.type, options)
        counts |= {way.processes * way.threads for way in ways}
    limits = measure_limits(device, sorted(counts), options["seconds"] / 5)
    print(_limits_table(limits), flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="lsexp-bench-") as scratch:
        for config, chosen in configs:
            say(f"measuring {chosen['recipe']}")
            rows.append(_measure_recipe(config, chosen, options, limits, Path(scratch)))
    print(_recipes_table(rows))
    if device.type == "cuda":
        print(_members_table(rows))
    for line in _doubts(limits, rows):
        print(line)
    whole = {"machine": machine, "seconds": options["seconds"], "limits": limits, "recipes": rows}
    replace_file(path, json.dumps(whole, indent=1, default=asdict) + "\n")
    clear(path.parent)
    print(path)
    return 0


def _split(words: list[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Our own keys, the names of recipes, and the words that concern a run."""
    typed, rest = taken(words, ("seconds", "workers", "members", "out_dir", "recipe"))
    for word in rest:
        if word in ("-m", "--multirun", "--dry-run"):
            raise UserError(f"{word}: goes with `lsexp train`; several recipes have commas between")
        if word.partition("=")[0] in ("train.steps", "train.epochs", "runs_dir"):
            raise UserError(f"{word}: bench trains for seconds=, in a folder of its own")
    folder = typed.get("out_dir") or os.environ.get("LSEXP_OUT_DIR") or "out"
    options: dict[str, Any] = {
        "seconds": _number("seconds", typed.get("seconds", "5"), float, 0.1, 3600),
        "workers": None,
        "typed": set(typed),
        "out_dir": user_path("out_dir", folder),
    }
    if "workers" in typed:
        options["workers"] = _number("workers", typed["workers"], int, 1, 1024)
    options["members"] = [
        _number("members", each, int, 1, 32)
        for each in typed.get("members", ",".join(map(str, MEMBERS))).split(",")
    ]
    recipes = typed["recipe"].split(",") if "recipe" in typed else compose.options("recipe", None)
    return options, recipes, rest


def _number(name: str, text: str, kind: type, least: float, most: float) -> Any:
    with contextlib.suppress(ValueError):
        if least <= (value := kind(text)) <= most:
            return value
    what = "a whole number" if kind is int else "a number"
    raise UserError(f"{name}={text}: must be {what} from {least:g} to {most:g}")


def _machine(device: Any) -> dict[str, Any]:
    import torch

    from lsexp.training.hardware import cpu_class, default_threads

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else name,
        "device": device.type,
        "cpu": name,
        "cpu_class": cpu_class(),
        "cores": default_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "torch": str(torch.__version__),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class _Meter:
    """How much of the cores' time goes to others, since it was made."""

    def __init__(self) -> None:
        self.began = self._now()

    def _now(self) -> tuple[float, float, float]:
        """Busy time of our cores, our own processor time, the clock; seconds."""
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        busy = 0.0
        for number, times in enumerate(psutil.cpu_times(percpu=True)):
            if cores is None or number in cores:
                parts = times._asdict()
                # Guests are counted in user and nice too; what a host takes (steal) is busy.
                idle = ("idle", "iowait", "guest", "guest_nice")
                busy += sum(value for name, value in parts.items() if name not in idle)
        ours = 0.0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                mine = process.cpu_times()
                ours += mine.user + mine.system
        return busy, ours, time.perf_counter()

    def busy(self) -> float:
        """Share of our cores' time, 0..1."""
        busy, ours, elapsed = np.subtract(self._now(), self.began)
        from lsexp.training.hardware import default_threads

        return float(np.clip((busy - ours) / (elapsed * default_threads()), 0, 1))


def measure_limits(device: Any, counts: Sequence[int], seconds: float) -> Limits:
    """FLOP/s of matrix products and bytes/s of copies, by kind and number of threads.

    Each thread works on matrices of its own, as the processes of a sweep do; a copy counts what
    it reads and what it writes.
    """
    import torch

    def products(dtype: torch.dtype, side: int) -> tuple[Callable[[], Any], float]:
        left, right, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
        return partial(torch.mm, left, right, out=out), 2.0 * side**3

    def copies() -> tuple[Callable[[], Any], float]:
        source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return partial(target.copy_, source), 2.0 * COPY_BYTES

    limits: Limits = {"bf16": {}, "fp32": {}, "copy": {}}
    for count in counts:
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            # The best of the sizes: what can be reached here, not what one size does.
            figures = [
                _rate(partial(products, dtype, side), device, count, seconds)
                for side in (GPU_MATRICES if device.type == "cuda" else MATRICES)
            ]
            limits[name][count] = max(figures, key=lambda figure: figure.value)
        limits["copy"][count] = _rate(copies, device, count, seconds)
    return limits


def _rate(
    make: Callable[[], tuple[Callable[[], Any], float]], device: Any, threads: int, seconds: float
) -> Figure:
    """Work per second of so many threads at once, each calling what `make` gave it."""
    import torch

    barrier = threading.Barrier(threads)

    def work(_: int) -> tuple[float, float]:
        torch.set_num_threads(1)
        call, amount = make()
        call()
        halves = []
        for _half in range(2):
            barrier.wait()
            done, began = 0, time.perf_counter()
            while done < 2 or time.perf_counter() - began < seconds / 2:
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                done += 1
            halves.append(amount * done / (time.perf_counter() - began))
        return halves[0], halves[1]

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            meter = _Meter()
            found = list(pool.map(work, range(threads)))
    finally:
        torch.set_num_threads(before)
    first, second = np.sum(found, axis=0).tolist()
    return Figure((first + second) / 2, (first, second), meter.busy(), 1, threads)


def flops_per_image(model: Any, shape: tuple[int, int, int]) -> float:
    """Floating-point operations of training on one image of (H, W, C); a product and sum are two.

    Forward and backward through convolutions and linear layers; the product that is our way of
    computing a local response normalisation is left out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lsexp.models.alexnet import LocalResponseNorm

    height, width, channels = shape
    with FlopCounterMode(display=False) as counter:
        # Two images: batch normalisation refuses one.
        model(torch.zeros(2, channels, height, width))[0].sum().backward()
    parts = counter.get_flop_counts()
    ours = sum(
        sum(parts.get(f"{type(model).__name__}.{name}", {}).values())
        for name, layer in model.named_modules()
        if isinstance(layer, LocalResponseNorm)
    )
    return (counter.get_total_flops() - ours) / 2


def _ways(config: TrainConfig, cores: int, device: str, options: dict[str, Any]) -> list[_Way]:
    """What is measured: a run alone, a sweep, and on a GPU what lies between."""
    threads = config.threads or 1
    if device == "cuda":
        counts = sorted({1, *options["members"]})
        middle = [_Way(f"members {count}", 1, threads, count) for count in counts]
        return [_Way("eager", 1, threads, capture=False), *middle]
    workers = options["workers"] or max(1, cores // threads)
    return [_Way("alone", 1, config.threads or cores), _Way("sweep", workers, threads)]


class _Enough(Exception):
    """All has been seen."""


class _Timer:
    """The screen of a pool whose runs are timed; raises `_Enough`."""

    def __init__(self, tasks: int, seconds: float):
        self.began = time.monotonic()
        self.seconds = seconds
        self.looks: list[list[tuple[float, int]]] = [[] for _ in range(tasks)]
        self.meter: _Meter | None = None
        self.busy = self.startup_seconds = 0.0

    def start(self, task: int) -> None: ...

    def epoch(self, task: int, row: Any) -> None: ...

    def look(self, task: int, step: int, loss: float, images_per_second: float) -> None:
        now = time.monotonic()
        if not self.startup_seconds:
            self.looks[task] = [(now, step)]
            if all(self.looks):
                self.startup_seconds = now - self.began
            return
        if now < self.began + self.startup_seconds + WARM_UP_SECONDS:
            return
        if self.meter is None:
            self.meter = _Meter()
            self.looks = [[] for _ in self.looks]
        self.looks[task].append((now, step))
        times = [looks[-1][0] - looks[0][0] if len(looks) > 3 else 0.0 for looks in self.looks]
        if min(times) >= self.seconds:
            self.busy = self.meter.busy()
            raise _Enough

    def end(self, task: int, outcome: Any) -> None:
        if outcome is not None:
            raise UserError(outcome.error, exit_code=1)

    def say(self, message: str) -> None:
        say(message)

    def steps_per_second(self) -> tuple[float, float, float]:
        """Of all runs together: over the whole time, its first and its second half."""
        parts = []
        for looks in self.looks:
            middle = len(looks) // 2
            for first, last in ((0, -1), (0, middle), (middle, -1)):
                (began, before), (ended, after) = looks[first], looks[last]
                parts.append((after - before) / (ended - began))
        whole, first_half, second_half = np.reshape(parts, (-1, 3)).sum(0).tolist()
        return whole, first_half, second_half


def _check_plan(config: TrainConfig, chosen: dict[str, str], scratch: Path) -> None:
    """Refuse, before anything is measured, what could not be trained."""
    from lsexp.launch.plan import plan as plan_run

    config = replace(_with_images(config, scratch), precision="fp32", runs_dir=str(scratch))
    plan_run(config, chosen, ["lsexp", "bench"], remember=False)


def _measure_recipe(
    config: TrainConfig,
    chosen: dict[str, str],
    options: dict[str, Any],
    limits: Limits,
    scratch: Path,
) -> dict[str, Any]:
    """A row: what is trained, and its throughput alone and as a sweep."""
    import torch

    from lsexp.data.batches import input_shape
    from lsexp.launch.plan import plan as plan_run
    from lsexp.models import build_model
    from lsexp.training.hardware import default_threads

    name = config.data.name
    config = _with_images(config, scratch)
    # A run that does not end by itself, and is not evaluated before.
    endless = replace(config.train, steps=ENDLESS, epochs=None, evals=1)
    config = replace(config, train=endless, runs_dir=str(scratch))
    plan = plan_run(config, chosen, ["lsexp", "bench"])
    shape = input_shape(plan.dataset.image_shape, config.augment)
    rng = torch.Generator()
    model = build_model(config.model, shape, plan.dataset.num_classes, rng, rng)
    flops = flops_per_image(model, shape)
    row = {
        "recipe": chosen["recipe"],
        "data": name,
        "random_images": config.data.name != name,
        "precision": plan.config.precision,
        "batch_size": config.train.batch_size,
        "flops_per_image": flops,
    }
    for way in _ways(config, default_threads(), plan.config.device, options):
        like = row.get("alone")
        if isinstance(like, Figure) and way[1:3] == (like.processes, like.threads):
            row[way.name] = like
            continue
        folder = str(scratch / f"{chosen['recipe']}-{way.name}")
        like_this = replace(plan.config, threads=way.threads, runs_dir=folder, capture=way.capture)
        trained = [replace(like_this, seed=seed) for seed in range(way.processes * way.members)]
        figure = _throughput(trained, chosen, way, options["seconds"])
        limit = limits[plan.config.precision][way.processes * way.threads].value
        figure.of_limit = figure.value * flops / limit
        row[way.name] = figure
    if plan.config.device == "cuda":
        row["alone"] = row["members 1"]
        row["sweep"] = row[f"members {max(options['members'])}"]
    return row


def _with_images(config: TrainConfig, scratch: Path) -> TrainConfig:
    """`config`, with random images in the place of a public set that is not here."""
    from lsexp.data.sources import is_here

    data = config.data
    if data.name not in SHAPES or is_here(data.name, config.data_dir):
        return config
    height, width, channels, classes = SHAPES[data.name]
    path = scratch / f"{data.name}.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        parts: dict[str, Any] = {}
        for part, count in (("train", RANDOM_IMAGES), ("test", classes)):
            parts[f"x_{part}"] = rng.integers(
                0, 256, (count, height, width, channels), dtype=np.uint8
            )
            parts[f"y_{part}"] = np.arange(count) % classes
        np.savez(path, **parts)
    data = replace(data, name="npz", path=str(path), url=None)
    return replace(config, data=data, data_dir=str(scratch))


def _throughput(
    configs: Sequence[TrainConfig], chosen: dict[str, str], way: _Way, seconds: float
) -> Figure:
    """Images per second of these runs at once."""
    from lsexp.launch.pool import Pool, Task

    tasks = [
        Task(config, chosen, ["lsexp", "bench"], f"{chosen['recipe']} seed={config.seed}")
        for config in configs
    ]
    timer = _Timer(len(tasks), seconds)
    try:
        with Pool(way.processes, way.threads) as pool:
            _, stopped = pool.train(tasks, timer, members=way.members)
    except _Enough:
        stopped = ""
    if stopped:
        raise UserError(f"stopped by {stopped}", exit_code=1)
    whole, first, second = (rate * configs[0].train.batch_size for rate in timer.steps_per_second())
    return Figure(
        whole,
        (first, second),
        timer.busy,
        way.processes,
        way.threads,
        way.members,
        startup_seconds=timer.startup_seconds,
    )


def _limits_table(limits: Limits) -> str:
    counts = list(limits["copy"])
    rows = [["limits", *(f"{count} thread{'s' * (count > 1)}" for count in counts), ""]]
    for kind, words, unit, factor in (
        ("bf16", "products bf16", "TFLOP/s", 1e-12),
        ("fp32", "products fp32", "TFLOP/s", 1e-12),
        ("copy", "copy", "GB/s", 1e-9),
    ):
        cells = [f"{factor * figure.value:.3g}{_mark(figure)}" for figure in limits[kind].values()]
        rows.append([words, *cells, unit])
    return table(rows, left=1)


def _recipes_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["recipe", "precision", "batch", "MFLOP/image"]
    head += ["alone images/s", "of limit", "sweep images/s", "of limit", "start-up"]
    cells = [head]
    for row in rows:
        line = [row["recipe"], row["precision"], str(row["batch_size"])]
        line.append(f"{row['flops_per_image'] / 1e6:,.4g}")
        for way in ("alone", "sweep"):
            figure = row[way]
            line += [f"{figure.value:,.0f}{_mark(figure)}", f"{100 * figure.of_limit:.0f} %"]
        cells.append([*line, f"{row['sweep'].startup_seconds:.1f} s"])
    return table(cells, left=2)


def _members_table(rows: Sequence[dict[str, Any]]) -> str:
    """On a GPU: images/s by how many runs there are at once."""
    names = [name for name in rows[0] if name == "eager" or name.startswith("members ")]
    head = ["images/s", *(n.replace("members", "graphs of") for n in names)]
    cells = [
        [row["recipe"], *(f"{row[n].value:,.0f}{_mark(row[n])}" for n in names)] for row in rows
    ]
    return table([head, *cells], left=1)


def _mark(figure: Figure) -> str:
    return "?" if figure.unreliable else ""


def _doubts(limits: Limits, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why figures are unreliable, one line each."""
    named = [
        (f"{kind}, {count} threads", figure)
        for kind, figures in limits.items()
        for count, figure in figures.items()
    ]
    named += [
        (f"{row['recipe']} {way}", figure)
        for row in rows
        for way, figure in row.items()
        if isinstance(figure, Figure) and not (way in ("alone", "sweep") and "eager" in row)
    ]
    lines = [f"? {name}: {figure.unreliable}" for name, figure in named if figure.unreliable]
    absent = dict.fromkeys(row["data"] for row in rows if row["random_images"])
    return lines + [
        f"{name} is not here: random images (`lsexp data {name}` fetches it)" for name in absent
    ]
