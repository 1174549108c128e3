"""`lsexp bench`: what it computes by hand, what it notices, and the command end to end."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from lsexp import bench, compose
from lsexp.cli import main
from lsexp.errors import UserError
from lsexp.models import build_model


@pytest.mark.parametrize(
    ("recipe", "shape", "by_hand"),
    [
        # 6 a weight forward and backward, less 2 of the first layer, which needs no slope of images
        ("digits_mlp", (8, 8, 1), 6 * (64 * 128 + 128 * 128 + 128 * 10) - 2 * 64 * 128),
        ("mnist_mlp", (28, 28, 1), 6 * (784 * 1200 + 1200 * 1200 + 12000) - 2 * 784 * 1200),
        (
            "cifar10_alexnet",
            (24, 24, 3),
            6 * (64 * 75 * 576 + 64 * 1600 * 144 + 2304 * 384 + 384 * 192 + 1920)
            - 2 * 64 * 75 * 576,
        ),
    ],
)
def test_the_arithmetic_of_a_network_is_that_counted_by_hand(recipe, shape, by_hand):
    [(config, _)] = compose.train_configs([f"recipe={recipe}"])
    rng = torch.Generator()
    model = build_model(config.model, shape, 10, rng, rng)
    assert bench.flops_per_image(model, shape) == by_hand


def test_our_way_of_normalising_is_not_counted_as_work(monkeypatch):
    """With and without the kernel: there it is a convolution with a band."""
    [(config, _)] = compose.train_configs(["recipe=cifar10_alexnet"])
    rng = torch.Generator()
    model = build_model(config.model, (24, 24, 3), 10, rng, rng)
    found = bench.flops_per_image(model, (24, 24, 3))
    monkeypatch.setattr("lsexp.models.kernels.fits", lambda _: False)
    assert bench.flops_per_image(model, (24, 24, 3)) == found


@pytest.mark.parametrize(
    ("halves", "busy", "words"),
    [
        ((100.0, 100.0), 0.0, ""),
        ((100.0, 91.0), 0.04, ""),
        ((100.0, 80.0), 0.0, "its halves differ by 20 %"),
        ((80.0, 100.0), 0.0, "its halves differ by 25 %"),
        ((100.0, 100.0), 0.3, "other programs took 30 % of the cores"),
    ],
)
def test_what_makes_a_figure_unreliable(halves, busy, words):
    assert bench.Figure(90.0, halves, busy, 1, 1).unreliable == words


def test_another_program_is_noticed_and_our_own_children_are_not():
    burn = "import time; t = time.time()\nwhile time.time() - t < 1.5: pass"
    meter = bench._Meter()
    subprocess.run([sys.executable, "-c", burn], check=True)
    # Its time is counted while it lives; here all of it is another's by now.
    assert meter.busy() > 0.2
    child = subprocess.Popen([sys.executable, "-c", burn])
    time.sleep(0.2)
    meter = bench._Meter()
    began = meter.began
    time.sleep(1.0)
    busy, ours, elapsed = np.subtract(meter._now(), began)
    child.wait()
    assert ours > 0.3 * elapsed  # on a busy machine it has less than a core
    assert busy >= ours - 0.1


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(bench.time, "monotonic", lambda: self.now)


def test_runs_are_timed_together_behind_start_and_warm_up(monkeypatch):
    clock = Clock(monkeypatch)
    timer = bench._Timer(2, seconds=2.0)
    clock.now += 3
    timer.look(0, 1, 0.0, 0.0)
    clock.now += 1
    timer.look(1, 1, 0.0, 0.0)
    assert timer.startup_seconds == 4.0
    steps = [1, 1]

    def train():
        for _ in range(100):
            clock.now += 0.25
            for task in (0, 1):
                # What comes within the second of warming up does not count.
                steps[task] += 1000 if clock.now < 1004.9 else (3, 5)[task]
                timer.look(task, steps[task], 0.0, 0.0)

    with pytest.raises(bench._Enough):
        train()
    assert timer.steps_per_second() == pytest.approx((32, 32, 32))


def test_the_limits_are_more_of_a_machine_for_larger_matrices_only_in_what_they_count():
    limits = bench.measure_limits(torch.device("cpu"), [1], seconds=0.05)
    assert set(limits) == {"bf16", "fp32", "copy"}
    left = torch.randn(1024, 1024)
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            left @ left
    finally:
        torch.set_num_threads(threads)
    rough = 3 * 2 * 1024**3 / (time.perf_counter() - began)
    assert 0.2 * rough < limits["fp32"][1].value < 20 * rough


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seconds=0"], "seconds=0: must be a number from 0.1 to 3600"),
        (["workers=1.5"], "workers=1.5: must be a whole number from 1 to 1024"),
        (["members=2", "device=cpu"], "members: on device=cpu workers= is how many run at once"),
        (["members=2,99"], "members=99: must be a whole number from 1 to 32"),
        (["recipe=nope"], "recipe=nope: must be one of"),
        (["recipe=digits_mlp,nope"], "recipe=nope: must be one of"),
        (["--dry-run"], "--dry-run: goes with `lsexp train`"),
        (["train.steps=3"], "train.steps=3: bench trains for seconds="),
        (["seconds=1", "seconds=2"], "seconds: is given twice"),
        (["bogus=1"], "bogus=1: no such key"),
        (["loss.eps=2"], "loss.eps=2.0: must be"),
    ],
)
def test_wrong_words_are_told_before_anything_is_measured(words, says):
    with pytest.raises(UserError) as error:
        bench.run(words)
    assert str(error.value).startswith(says)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("words", [["recipe=digits_mlp"], []])
def test_a_folder_that_cannot_be_written_is_told_first(words, tmp_path, capsys):
    """Also with every recipe, of which those of students are left out."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        bench.run([*words, f"out_dir={tmp_path / 'file'}"])
    assert str(error.value).startswith(f"out_dir={tmp_path / 'file'}: ")
    assert error.value.exit_code == 1
    assert capsys.readouterr().out == ""


def test_the_command_measures_alone_and_as_a_sweep(tmp_path, monkeypatch, capsys):
    """And where a set is not here, with random images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "MATRICES", (256,))
    monkeypatch.setattr(bench, "COPY_BYTES", 10_000_000)
    monkeypatch.setattr(bench, "WARM_UP_SECONDS", 0.2)
    words = ["bench", "recipe=mnist_mlp", "seconds=0.2", "workers=2", "threads=1"]
    words += ["precision=fp32"]
    assert main([*words, f"data_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("machine ")
    path = tmp_path / lines[-1]
    assert path.name.endswith(
        "-recipe=mnist_mlp-seconds=0.2-workers=2-threads=1-precision=fp32.json"
    )
    found = json.loads(path.read_text())
    assert found["machine"]["cpu_class"] in lines[0]
    [row] = found["recipes"]
    assert (row["recipe"], row["precision"], row["batch_size"]) == ("mnist_mlp", "fp32", 512)
    for way, processes in (("alone", 1), ("sweep", 2)):
        figure = row[way]
        assert (figure["processes"], figure["threads"]) == (processes, 1)
        limit = found["limits"]["fp32"][str(processes)]["value"]
        assert figure["of_limit"] == pytest.approx(figure["value"] * row["flops_per_image"] / limit)
        assert 1000 < figure["value"] < 1e7
        assert figure["startup_seconds"] > 0.2
    assert {path.name for path in tmp_path.iterdir()} == {"out"}  # its runs are thrown away
    assert "mnist is not here: random images (`lsexp data mnist` fetches it)" in said
    assert (row["data"], row["random_images"]) == ("mnist", True)
