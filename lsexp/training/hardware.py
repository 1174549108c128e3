"""Where a run trains: device, class of CPU, precision; what must stay the same to repeat it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numba
import torch

from lsexp.errors import UserError
from lsexp.models import kernels
from lsexp.training.bank import stepper
from lsexp.training.member import Member

PAYS = 1.2
"""bf16 must be this many times faster than fp32 to be chosen: a tie should not be a toss."""

TIMED_STEPS = 5
"""Steps that are timed together on a GPU."""


class Environment(NamedTuple):
    """What the last bit of the weights depends on, recorded when training starts.

    kernels: "deterministic", or "fast" with the key of that name; "without Triton" where a GPU
        has none.
    numba: version of what compiles the fused layers of a CPU; "" on a GPU, and in runs that began
        before it was recorded.
    """

    device: str
    cpu_class: str
    precision: str
    threads: int
    torch: str
    kernels: str = "deterministic"
    numba: str = ""

    def decisive(self) -> dict[str, str]:
        """What cannot be set at will and decides the weights: on a GPU, not the CPU beside it."""
        names = ["device", "precision", "torch", "kernels"]
        names += ["cpu_class"] if self.device == "cpu" else []
        names += ["numba"] if self.numba else []
        return {name: getattr(self, name) for name in names}


def resolve_device(device: str) -> torch.device:
    """`auto`: the GPU where there is one. Raises UserError where the named one is missing."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device=cuda: torch {torch.__version__} finds no CUDA device here; device=cpu works "
            f"everywhere"
        )
    return torch.device(device)


def prepare(device: torch.device, threads: int, *, fast: bool = False) -> None:
    """Set the process up so that equal configs give equal weights (unless `fast`, on a GPU), and
    memory is kept."""
    torch.set_num_threads(threads)
    _keep_memory()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = not fast
        torch.backends.cudnn.benchmark = fast
        # float32 means float32, in evaluation above all: not products of 10-bit mantissas.
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def _keep_memory() -> None:
    """Have glibc reuse what a step frees, rather than return it to the kernel.

    By default whatever is larger than some limit comes fresh from the kernel each time, which
    costs a page fault for every 4 kB: up to a third of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # of malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 2**26)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch with a single CPU thread; then with as many as before, whatever happens."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_threads() -> int:
    """One thread for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_class() -> str:
    """The widest matmul instructions that torch sees: amx_bf16, avx512_bf16, avx512, avx2, ...

    Kernels, and so the last bits of a result, go with the class.
    """
    has = torch.cpu.get_capabilities()
    names = {
        "amx_bf16": "amx_bf16",
        "avx512_bf16": "avx512_bf16",
        "avx512_f": "avx512",
        "avx2": "avx2",
    }
    return next((name for flag, name in names.items() if has.get(flag)), platform.machine())


def environment(device: torch.device, precision: str, *, fast: bool = False) -> Environment:
    on_cpu = device.type == "cpu"
    kinds = "fast" if fast and not on_cpu else "deterministic"
    if not on_cpu and not kernels.fused(device):
        kinds += ", without Triton"
    return Environment(
        "cpu" if on_cpu else torch.cuda.get_device_name(device),
        cpu_class(),
        precision,
        torch.get_num_threads(),
        str(torch.__version__),
        kinds,
        numba.__version__ if on_cpu else "",
    )


def choose_precision(build: Callable[[str], Member], *, seconds: float = 2.0) -> str:
    """`"bf16"` where real steps with it are faster by `PAYS` and come out alike, else `"fp32"`.

    Timed, not read off flags: some CPUs emulate bf16 at a quarter of the speed of fp32, and some
    kernels have been wrong.

    On a GPU it is called within a `stream`, and graphs are timed.

    Args:
        build: makes a fresh member that trains at the precision named.
        seconds: about how long to measure.
    """
    members = {precision: build(precision) for precision in ("fp32", "bf16")}
    images, _ = members["fp32"].batches(0)
    with torch.no_grad():
        exact = members["fp32"].model.eval()(images)[0].double()
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            rough = members["bf16"].model.eval()(images)[0].double()
    if not (rough - exact).norm() < 0.05 * exact.norm():
        return "fp32"
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with one_thread():  # what else runs here then tells less
        for member in members.values():
            member.model.train()
        advance = {precision: stepper(member) for precision, member in members.items()}
        room = min(len(member.losses_S) for member in members.values())
        count = 1 if images.device.type == "cpu" else max(1, min(TIMED_STEPS, room - 1))
        until = time.monotonic() + seconds
        while len(times["bf16"]) < 4 or time.monotonic() < until:
            for precision, member in members.items():
                member.reset_sums()
                work = partial(advance[precision], count)
                times[precision].append(seconds_of(work, images.device))
    fp32, bf16 = (min(times[precision][1:]) for precision in ("fp32", "bf16"))
    return "bf16" if fp32 > PAYS * bf16 else "fp32"


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """Wall seconds of `work`, the device's part included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
