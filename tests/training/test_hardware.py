"""Device, class of CPU, precision."""

import os
import platform
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch

from lsexp.config import DataConfig, LossConfig, MLPConfig, OptimConfig, StepsConfig, TrainConfig
from lsexp.data import draw_splits, load
from lsexp.data.batches import Images
from lsexp.errors import UserError
from lsexp.training import hardware
from lsexp.training.evaluate import accuracy_and_nll, logits_of
from lsexp.training.hardware import choose_precision, cpu_class, resolve_device
from lsexp.training.member import Member, step


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for a busy core cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(precision):
    pixels = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 1)).astype(np.uint8)
    config = TrainConfig(
        model=MLPConfig(widths=[16]), train=StepsConfig(9, batch_size=4), precision=precision
    )
    train = Images.on(torch.device("cpu"), pixels, np.arange(10) % 3, np.arange(10))
    return Member(config, train, 3)


def timed(monkeypatch, fp32, bf16):
    """Pretend that steps take so many seconds."""

    def seconds_of(work, _device):
        member, _ = work.args
        return {"fp32": fp32, "bf16": bf16}[member.config.precision]

    monkeypatch.setattr(hardware, "seconds_of", seconds_of)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2", "avx512_f", "avx512_bf16", "amx_bf16"}, "amx_bf16"),
        ({"avx2", "avx512_f", "avx512_bf16"}, "avx512_bf16"),
        ({"avx2", "avx512_f"}, "avx512"),
        ({"avx2"}, "avx2"),
        (set(), platform.machine()),
    ],
)
def test_class_of_cpu_is_its_widest_instructions(flags, expected, monkeypatch):
    names = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
    found = {name: name in flags for name in names}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert cpu_class() == expected


def test_threads_come_back_whatever_happens():
    torch.set_num_threads(2)
    inside = []

    @hardware.one_thread()
    def fails():
        inside.append(torch.get_num_threads())
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fails()
    assert (inside, torch.get_num_threads()) == ([1], 2)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    assert resolve_device("cpu").type == "cpu"


def test_cuda_is_refused_by_its_key_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device=cuda: .*device=cpu works"):
        resolve_device("cuda")


def test_prepare_sets_the_threads_that_environment_records():
    for threads in (2, 1):
        hardware.prepare(torch.device("cpu"), threads)
        assert torch.get_num_threads() == threads
        found = hardware.environment(torch.device("cpu"), "bf16")
        here = ("cpu", cpu_class(), "bf16", threads, torch.__version__, "deterministic")
        assert found == (*here, numba.__version__)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_default_threads_are_the_cores_that_the_process_may_use():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert hardware.default_threads() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert hardware.default_threads() == len(cores)


@pytest.mark.parametrize(
    ("fp32", "expected"),
    [(0.5, "fp32"), (1.0, "fp32"), (hardware.PAYS, "fp32"), (1.01 * hardware.PAYS, "bf16")],
)
def test_bf16_is_chosen_only_where_it_is_faster_by_the_margin(fp32, expected, monkeypatch):
    timed(monkeypatch, fp32=fp32, bf16=1.0)
    assert choose_precision(build, seconds=0) == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.01, "bf16"), (1.2, "fp32"), (float("nan"), "fp32")]
)
def test_bf16_is_not_chosen_where_its_outputs_differ_however_fast(factor, expected, monkeypatch):
    def wrong(precision):
        member = build(precision)
        if precision == "bf16":
            with torch.no_grad():
                member.model.fc.weight.mul_(factor)
        return member

    timed(monkeypatch, fp32=100.0, bf16=1.0)
    assert choose_precision(wrong, seconds=0) == expected


def test_precision_is_timed_on_real_steps():
    built = {}

    def kept(precision):
        return built.setdefault(precision, build(precision))

    assert choose_precision(kept, seconds=0.01) in ("fp32", "bf16")
    assert built["fp32"].step == built["bf16"].step > 1


def test_bf16_learns_the_digits_as_well_as_fp32():
    dataset = load(DataConfig(), None)
    splits = draw_splits(dataset, DataConfig())
    arrays, cpu = dataset.arrays, torch.device("cpu")
    train = Images.on(cpu, arrays.train_images, arrays.train_labels, splits.train)
    val = Images.on(cpu, arrays.train_images, arrays.train_labels, splits.val)
    config = TrainConfig(
        model=MLPConfig(widths=[64]),
        loss=LossConfig(eps=0.1),
        optim=OptimConfig(lr=0.1, momentum=0.9, nesterov=True, schedule="linear"),
        train=StepsConfig(steps=200, batch_size=64),
    )
    accuracy = {}
    for precision in ("fp32", "bf16"):
        trial = replace(config, precision=precision)
        member = Member(trial, train, dataset.num_classes)
        while member.step < 200:
            step(member)
            member.reset_sums()
        logits = logits_of(member.model, member.preprocess, val)
        accuracy[precision], _ = accuracy_and_nll(logits, val.labels_N)
    assert accuracy["fp32"] > 0.93
    assert accuracy["bf16"] == pytest.approx(accuracy["fp32"], abs=0.03)
