"""What a person is told while runs train, by a clock of the test's own."""

from types import SimpleNamespace

import pytest

from lsexp.launch import progress
from lsexp.launch.progress import Pace, SweepView, View


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def finished(accuracy=0.9):
    metrics = {"test": {"accuracy": accuracy, "ece": 0.05}, "seconds": 20}
    return SimpleNamespace(error=None, metrics=metrics)


def test_the_time_left_is_that_of_the_pace_since_the_first_step_told(clock):
    pace = Pace()
    assert pace.left(1000) == ""
    clock.seconds += 1
    assert pace.left(990) == ""  # not sure yet
    clock.seconds += 9
    assert pace.left(900) == "1 min 30 s"
    assert pace.left(1000) == ""  # one of them began again


def test_a_pause_or_a_slow_time_is_forgotten(clock):
    pace = Pace()
    pace.left(10_000)
    clock.seconds += 3600
    for left in range(9_000, 5_000, -10):  # ten a second
        clock.seconds += 1
        pace.left(left)
    assert pace.left(5_000) == "8 min 18 s"  # 500 s, the last look being a second ago
    clock.seconds += 1
    assert pace.left(5_000) == "8 min 20 s"


def test_while_the_command_is_stopped_no_time_passes(clock):
    pace = Pace()
    for left in range(1000, 500, -10):
        assert pace.left(left) in ("", f"{left / 10:.0f} s", f"1 min {left / 10 - 60:.0f} s")
        clock.seconds += 1
    assert pace.left(500) == "50 s"
    clock.seconds += 10_000  # stopped here
    assert pace.left(499) == "50 s"
    clock.seconds += 40  # and here it only had nothing to tell
    assert pace.left(300) == "39 s"  # 700 in 90 s


def test_steps_that_nobody_makes_any_more_are_no_pace(clock):
    pace = Pace()
    pace.left(1000)
    clock.seconds += 10
    pace.without(500)
    assert pace.left(400) == "40 s"


def test_a_run_tells_steps_speed_and_the_time_left_every_ten_seconds(clock, capsys):
    view = View(1000, start=0)
    for step in range(10, 310, 10):
        clock.seconds += 1
        view.look(step, 0.5, 640.0, 64)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"step {step}/1000  640 images/s  loss 0.5000  {left} left"
        for step, left in ((100, "1 min 30 s"), (200, "1 min 20 s"), (300, "1 min 10 s"))
    ]


def test_a_sweep_tells_what_is_done_what_runs_and_how_long_the_rest_takes(clock, capsys):
    view = SweepView(["a", "b", "c"], [100, 100, 100], [0, 50, 0])
    view.start(0)
    view.start(1)
    clock.seconds += 60  # a machine may take long to import
    view.look(0, 1, 0.5, 64.0)
    assert (
        capsys.readouterr().err
        == "0 of 3 runs done; a  step 1 of 100  64 images/s  loss 0.5000; b  starting\n"
    )
    clock.seconds += 10
    view.look(0, 50, 0.25, 64.0)  # 49 of 249 in 10 s
    assert capsys.readouterr().err.startswith("0 of 3 runs done, about 41 s left; a  step 50 of")
    view.end(1, SimpleNamespace(error="of no memory", metrics={}))
    view.end(0, finished())
    assert capsys.readouterr().err.splitlines() == [
        "1/3  b  failed: of no memory",
        "2/3  a  test accuracy 90.00 %  ece 0.0500  in 20 s",
    ]
    view.start(2)
    clock.seconds += 10
    view.look(2, 1, 0.5, 64.0)  # 100 of 199 in 20 s
    assert capsys.readouterr().err.startswith("2 of 3 runs done, about 20 s left; c  step 1")
