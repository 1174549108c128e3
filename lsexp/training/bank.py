"""Steps as CUDA graphs, so that a bank of members shares one GPU.

A step of these networks is hundreds of small operations, each of which costs the host more time
than the device. So several steps are recorded once, as a graph, and replayed: the host says one
word where it said thousands, and members on streams of their own fill the device together. The
order, augmentation, rates and losses of the steps lie in tensors on the device that are filled
before a replay. A graph is trusted only where its first steps end, bit for bit, where the same
steps taken one by one do.

    member.py  `update`, which is recorded
    here       recording, the check, replay
    launch/    a process whose threads train a member each
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from lsexp.config import FOREIGN, LossConfig
from lsexp.data.batches import Epoch
from lsexp.models.foreign import NetworkError
from lsexp.text import say
from lsexp.training.loop import take_steps
from lsexp.training.member import MOST_STEPS, Member, update

GRAPH_SECONDS = 0.06
"""About the time on the host of the steps in a graph, one by one: about two thousand operations.
With few, the host cannot replay those of several members as fast as the device has done them."""
WARM_UP_STEPS = 3
NEAR = 0.05
"""Of the norm of a tensor, that steps with other kernels may be away after a graph's steps."""

_recording = threading.Lock()
_steps_of: dict[str, int] = {}
"""Steps in a graph by kind of run, so that all members of a kind have graphs of one length."""
_idle: list[Any] = []
"""Streams that nobody uses now. Memory that one has freed is of no use to another."""


@contextlib.contextmanager
def stream(device: torch.device) -> Iterator[None]:
    """A context in which this thread's work goes to a stream of its own; of a GPU."""
    if device.type != "cuda":
        yield
        return
    try:
        own = _idle.pop()
    except IndexError:
        own = torch.cuda.Stream(device)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        _idle.append(own)


class Recorder(Protocol):
    """Records what `work` does on the device; what it gives does it again."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CudaRecorder:
    """Graphs of one member, on the stream of this thread; they share their memory.

    They are destroyed together: one alone could take a workspace of cuBLAS from the others
    (pytorch#193402).
    """

    def __init__(self, member: Member):
        self.pool = torch.cuda.graph_pool_handle()
        draws = getattr(member.config.model, "dropout", 0) > 0
        # From torch 2.14 on a graph finds by itself what it draws from.
        needed = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
        self.generators = [member.masks] if draws and needed else []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        for one in self.generators:
            graph.register_generator_state(one)
        torch.cuda.current_stream().synchronize()
        # Of other threads: they may allocate meanwhile, on streams that are not recorded.
        graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the first error tells more
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay


def stepper(
    member: Member,
    *,
    capture: bool = True,
    exact: bool = True,
    record: Recorder | None = None,
    name: str = "",
) -> Callable[[int], None]:
    """What takes so many steps with a member: graphs on a GPU, where they can be had, else one
    `step` after the other. Call it, and what it gives, in the member's `stream`.

    Args:
        capture: whether to try graphs at all.
        exact: whether they must do the same in every bit; else about the same, where kernels are
            not deterministic.
        record: in the place of CUDA's; tests have one.
        name: of the run, for what is said.
    """
    no_graph = f"{name}: no CUDA graph" if name else "no CUDA graph"
    if not capture or (record is None and member.device.type != "cuda"):
        return partial(take_steps, member)
    if isinstance(member.config.model, FOREIGN):
        say(f"{no_graph}: a network that is not ours may draw from torch's generator")
        return partial(take_steps, member)
    with _recording:
        collecting = gc.isenabled()
        gc.disable()  # what is collected while a graph is recorded may free what it must not
        if member.device.type == "cuda":
            # What graphs of runs that have ended held; while one is recorded nothing is given back.
            torch.cuda.empty_cache()
        try:
            return Captured(member, record or CudaRecorder(member), exact=exact).advance
        except NotTrusted as error:
            say(f"{no_graph}: {error}; its steps are taken one by one, slower")
            return partial(take_steps, member)
        finally:
            if collecting:
                gc.enable()


class NotTrusted(Exception):
    """Steps could not be recorded, or did something else when replayed."""


class Captured:
    """A member whose steps are replayed.

    Attributes:
        steps: in the larger graph; a smaller one has one step.
        draws, own: what the steps of a graph read, as `Member.draws`; rates_SG: their rates;
            losses_S: what they write.

    Raises:
        NotTrusted: the member is as it was.
    """

    def __init__(self, member: Member, record: Recorder, *, exact: bool = True):
        self.member = member
        self.exact = exact
        before = _State(member)
        began = 0.0
        for _ in range(WARM_UP_STEPS):  # the first chooses kernels, and allocates
            _synchronize(member.device)
            began = time.perf_counter()
            member.reset_sums()
            take_steps(member, 1)
        seconds = time.perf_counter() - began
        before.restore()
        alike = repr(replace(member.config, loss=LossConfig(), seed=0))
        steps = _steps_of.setdefault(alike, round(GRAPH_SECONDS / seconds))
        room = len(member.losses_S) - 1
        self.steps = max(1, min(MOST_STEPS, room, steps))

        size = self.steps * member.config.train.batch_size
        draws, own = member.draws()
        self.draws = Epoch(*(one.new_zeros(size) for one in draws))
        self.own = None if own is None else Epoch(*(one.new_zeros(size) for one in own))
        groups = len(member.optimizer.param_groups)
        self.rates_SG = torch.zeros(self.steps, groups, device=member.device)
        self.losses_S = torch.zeros(self.steps, device=member.device)
        try:
            self.replay = {size: record(self._updates(size)) for size in {self.steps, 1}}
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NetworkError) as error:  # the latter of a teacher of the user's
            if "out of memory" in str(error):
                raise
            before.restore()
            raise NotTrusted(str(error).splitlines()[0]) from error
        before.restore()  # of the generator: recording may have drawn from it
        for size in self.replay:
            self._check(size, before)

    def _updates(self, steps: int) -> Callable[[], None]:
        """The work of a graph."""
        member, batch = self.member, self.member.config.train.batch_size

        def part(draws: Epoch | None, number: int) -> Epoch | None:
            if draws is None:
                return None
            return Epoch(*(one[number * batch : (number + 1) * batch] for one in draws))

        def work() -> None:
            for number in range(steps):
                draws = part(self.draws, number)
                assert draws is not None
                loss = update(member, draws, part(self.own, number), list(self.rates_SG[number]))
                self.losses_S[number] = loss

        return work

    def _check(self, steps: int, before: _State) -> None:
        """Compare replayed steps with the same taken one by one."""
        member = self.member
        member.reset_sums()
        take_steps(member, steps)
        expected = _State(member, steps)
        before.restore()
        member.reset_sums()
        self._replayed(steps)
        same = expected.like(_State(member, steps), exact=self.exact)
        before.restore()
        if not same:
            raise NotTrusted(f"{steps} replayed steps end in other weights than the same in turn")

    def advance(self, count: int) -> None:
        """Take so many steps."""
        while count:
            steps = self.steps if count >= self.steps else 1
            self._replayed(steps)
            count -= steps

    def _replayed(self, steps: int) -> None:
        member = self.member
        size = steps * member.config.train.batch_size
        draws, own = member.draws(steps)
        _fill(self.draws, draws, member.batches.used, size)
        if own is not None:
            assert self.own is not None
            assert member.teacher is not None
            assert member.teacher.own is not None
            _fill(self.own, own, member.teacher.own.used, size)
        self.rates_SG[:steps].copy_(member.rates(member.step, steps))
        self.replay[steps]()
        first = member.since_reset
        member.losses_S[first : first + steps].copy_(self.losses_S[:steps])
        member.since_reset += steps
        member.step += steps


class _State:
    """A copy, on the device, of all that steps change, to go back to or to compare with.

    losses: how many of the first losses to copy; None: those up to now.
    """

    def __init__(self, member: Member, losses: int | None = None):
        self.member = member
        self.count = member.since_reset if losses is None else losses
        self.step = member.step
        # clone() keeps the layout in memory, as the kernels that read it need.
        self.tensors = [tensor.detach().clone() for tensor in self._live()]
        self.masks = member.masks.get_state()

    def _live(self) -> list[Tensor]:
        return [*self.member.moved(), self.member.losses_S[: self.count]]

    def restore(self) -> None:
        """In place, since graphs know the tensors by where they lie."""
        with torch.no_grad():
            for tensor, kept in zip(self._live(), self.tensors, strict=True):
                tensor.copy_(kept)
        self.member.masks.set_state(self.masks)
        self.member.step, self.member.since_reset = self.step, self.count

    def like(self, other: _State, *, exact: bool) -> bool:
        alike = _equal if exact else _near
        pairs = zip(self.tensors, other.tensors, strict=True)
        return torch.equal(self.masks, other.masks) and all(alike(*pair) for pair in pairs)


def _equal(first: Tensor, second: Tensor) -> bool:
    """In every bit; a NaN too."""
    if first.dtype == torch.float32:
        first, second = first.view(torch.int32), second.view(torch.int32)
    return torch.equal(first, second)


def _near(first: Tensor, second: Tensor) -> bool:
    """Whole numbers are counts: of images that are right, a few may differ."""
    first, second = first.double(), second.double()
    return bool((first - second).norm() <= NEAR * first.norm() + 1e-6)


def _fill(static: Epoch, drawn: Epoch, names: tuple[str, ...], size: int) -> None:
    for name in names:
        getattr(static, name)[:size].copy_(getattr(drawn, name))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
