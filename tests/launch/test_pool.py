"""What a worker does between runs, and the signals that its parent collects."""

import os
import signal
from collections import deque

import pytest
import torch
from support import tiny_plan

from lsexp.launch.local import execute
from lsexp.launch.plan import Planner, plan
from lsexp.launch.pool import Outcome, Task, _give_up, _ready, _signals


def test_a_run_has_its_own_number_of_threads_whatever_ran_before(tmp_path):
    planned = tiny_plan(tmp_path / "runs", "train.steps=3")
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as a run that began so leaves it
    try:
        metrics = execute(planned)
        assert torch.get_num_threads() == 1
        assert metrics["provenance"]["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_a_planner_plans_as_plan_does(tmp_path):
    one = tiny_plan(tmp_path / "runs")
    planner = Planner(one.chosen, one.command)
    for words in ([], ["loss.eps=0.1"], ["seed=3"], ["loss.spread=others", "loss.eps=0.2"]):
        config = tiny_plan(tmp_path / "runs", *words).config
        ours, theirs = planner(config), plan(config, one.chosen, one.command)
        assert ours.identity == theirs.identity
        assert ours.folder.path == theirs.folder.path
        assert (ours.config, ours.targets) == (theirs.config, theirs.targets)


class Silent:
    def __init__(self):
        self.ended = {}

    def end(self, task, outcome):
        self.ended[task] = outcome


def test_a_student_waits_for_its_teacher_and_is_given_up_with_it(tmp_path):
    config = tiny_plan(tmp_path).config
    afters = [None, 0, None, 2, 1]
    tasks = [Task(config, {}, [], f"run {i}", after=after) for i, after in enumerate(afters)]
    outcomes, todo, screen = [None] * 5, deque([4, 3, 2, 1, 0]), Silent()
    assert list(_ready(tasks, outcomes, todo)) == [2, 0]
    outcomes[0] = Outcome(metrics={})
    todo.remove(0)
    assert list(_ready(tasks, outcomes, todo)) == [2, 1]
    outcomes[2] = Outcome(error="no")
    todo.remove(2)
    _give_up(tasks, outcomes, todo, screen)
    assert list(todo) == [4, 1]
    assert outcomes[3].error == "its teacher failed (run 2)"
    assert list(screen.ended) == [3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_collected_and_the_handlers_come_back_only_without_one(number):
    before = signal.getsignal(number)
    try:
        with _signals() as caught:
            assert caught == []
        assert signal.getsignal(number) == before
        with _signals() as caught:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        assert caught == [signal.Signals(number).name] * 2
        os.kill(os.getpid(), number)  # it must not cut the last words off
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
