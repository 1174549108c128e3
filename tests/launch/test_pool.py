"""What a worker does between runs, and the signals that its parent collects."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_plan

import lsexp
from lsexp.launch import local
from lsexp.launch import plan as planning
from lsexp.launch.local import execute
from lsexp.launch.plan import Planner, plan
from lsexp.launch.pool import Outcome, Pool, Task, _ready, _Work, _Worker, give_up
from lsexp.runs.claims import acquire
from lsexp.training.bank import stepper


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


def test_a_worker_looks_once_at_what_its_runs_share(tmp_path, monkeypatch):
    """Whatever order they come in, and of how many recipes they are."""
    looked, loaded = [], []

    def looking(*arguments, **keywords):
        looked.append(arguments)
        return plan(*arguments, **keywords)

    def loading(*arguments):
        loaded.append(arguments)
        return lsexp.data.load(*arguments)

    recipes = ["recipe=digits_mlp", "recipe=digits_shifted"]
    alone = [tiny_plan(tmp_path, recipe, f"seed={s}") for s in range(3) for recipe in recipes]
    monkeypatch.setattr(planning, "plan", looking)
    monkeypatch.setattr(planning, "load", loading)
    work = _Work(None, None)
    for number, one in enumerate(alone):
        task = Task(one.config, one.chosen, ["lsexp", str(number)], f"run {number}")
        found = work._plan(task)
        assert (found.chosen, found.command) == (task.chosen, task.command)
        assert (found.config, found.identity) == (one.config, one.identity)
        assert found.folder.path == one.folder.path
    assert len({one.chosen["recipe"] for one in alone}) == len(looked) == 2
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("word", "times"),
    [
        ("data_dir=other", 2),
        ("train.steps=7", 1),
        ("data.split=full", 1),
        ("data.train_size=99", 1),
    ],
)
def test_a_planner_loads_other_data_anew(tmp_path, monkeypatch, word, times):
    configs = [tiny_plan(tmp_path, *words).config for words in ([], [word])]
    loaded = []

    def loading(*arguments):
        loaded.append(arguments)
        return lsexp.data.load(*arguments)

    monkeypatch.setattr(planning, "load", loading)
    planner = Planner({}, [])
    for config in configs:
        planner(config)
    assert len(loaded) == times


OF_ONE_WORKER = """
import json, subprocess
from pathlib import Path
from lsexp import compose
from lsexp.launch.pool import Pool, Task

class Screen:
    def start(self, *_): ...
    look = epoch = say = start
    def end(self, task, _outcome):
        with Path(compose.__file__).open("a") as file:
            file.write("# Changed.\\n")
        if task == 0:
            subprocess.run(["git", "commit", "-qam", "Later"], check=True)

if __name__ == "__main__":
    words = ["budget=smoke", "artifacts.tensorboard=false", "threads=1", "-m", "seed=0,1,2"]
    configs = compose.train_configs([*words, "runs_dir=runs"])
    tasks = [Task(config, chosen, [], str(config.seed)) for config, chosen in configs]
    with Pool(1, 1) as pool:
        outcomes, _ = pool.train(tasks, Screen())
    print(json.dumps([outcome.metrics["provenance"]["git"] for outcome in outcomes]))
"""


def test_the_commit_of_a_run_is_that_of_the_code_which_trained_it(tmp_path, monkeypatch):
    """Not that of a checkout which has changed while the worker lived."""
    package = Path(lsexp.__file__).parent
    for folder in (package, package.parent / "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, tmp_path / folder.name, ignore=ignored)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    (tmp_path / "worker.py").write_text(OF_ONE_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.org")

    def told_by(*words):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    told_by("git", "init", "-q")
    told_by("git", "add", "lsexp", "configs", ".gitignore")
    told_by("git", "commit", "-qm", "First")
    first = told_by("git", "rev-parse", "HEAD")
    recorded = json.loads(told_by(sys.executable, "worker.py").splitlines()[-1])
    assert told_by("git", "rev-parse", "HEAD") != first
    assert recorded == [{"commit": first, "dirty": False}] * 3


class Silent:
    def __init__(self):
        self.ended = {}

    def end(self, task, outcome):
        self.ended[task] = outcome

    def say(self, message): ...


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
    give_up(tasks, outcomes, todo, screen)
    assert list(todo) == [4, 1]
    assert outcomes[3].error == "its teacher failed (run 2)"
    assert list(screen.ended) == [3]


def test_a_worker_that_begins_is_not_told_of_ctrl_c():
    """Its start takes a second, in which it cannot ignore it by itself yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    worker = _Worker(1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    os.kill(worker.process.pid, signal.SIGINT)
    worker.connection.close()
    worker.process.join(60)
    assert worker.process.exitcode == 0


def test_a_signal_that_comes_in_the_end_is_not_lost():
    signals = []
    with Pool(0, 1) as pool:
        assert pool.train([], None, signals=signals) == ([], "")
        signals.append("SIGTERM")
        assert pool.train([], None, signals=signals) == ([], "SIGTERM")


@pytest.mark.parametrize(
    ("busy", "new", "members", "takes"),
    [
        ([], 0, 1, True),
        ([0], 1, 1, False),
        ([0], 1, 2, True),
        ([0, 1], 3, 2, False),
        ([0], 2, 4, False),  # its worker has died: alone
        ([2], 0, 4, False),
        ([], 2, 4, True),
    ],
)
def test_a_bank_has_room_for_its_members_but_one_whose_worker_died_goes_on_alone(
    busy, new, members, takes, tmp_path
):
    config = tiny_plan(tmp_path).config
    tasks = [Task(config, {}, [], "run", deaths=deaths) for deaths in (0, 0, 1, 0)]
    worker = object.__new__(_Worker)
    worker.tasks = set(busy)
    assert worker.takes(new, tasks, members) is takes


class Bank:
    """The worker's side of a bank, in this process: several runs at once, in threads.

    Its steps are recorded and replayed, by a stand-in that replays what it recorded.
    """

    def __init__(self, monkeypatch):
        self.recorded = []

        def recording(member, *, capture, exact, name):
            self.recorded.append(member.config.seed)
            return stepper(member, capture=capture, exact=exact, record=lambda work: work)

        monkeypatch.setattr(local, "stepper", recording)
        monkeypatch.setattr(_Work, "_on_gpu", lambda _self, _config: True)

    def train(self, plans, on_message=lambda _message: None, *, again=False):
        """How each ended: (kind, metrics or error); a thread plays the parent.

        again: what was stopped is given out again at once, as the parent does where it was not it
        who stopped it.
        """
        ours, theirs = multiprocessing.Pipe()
        ended = {}

        def give(number):
            one = plans[number]
            ours.send((number, Task(one.config, one.chosen, one.command, f"run {number}"), True))

        def parent():
            for number in range(len(plans)):
                give(number)
            while len(ended) < len(plans):
                message = ours.recv()
                on_message(message)
                if again and message[0] == "stopped":
                    give(message[1])
                elif message[0] not in ("look", "epoch", "say"):
                    ended[message[1]] = (message[0], *message[2:])
            ours.close()

        thread = threading.Thread(target=parent)
        before = signal.getsignal(signal.SIGTERM)
        thread.start()
        try:
            lock = threading.Lock()

            def send(*message):
                with lock:
                    theirs.send(message)

            _Work(theirs, send).serve()
        finally:
            signal.signal(signal.SIGTERM, before)
            thread.join()
        return [ended[number] for number in range(len(plans))]


def weights(plan):
    return load_file(plan.folder.path / "model.safetensors")


def test_members_of_a_bank_end_as_alone_and_fail_by_themselves(tmp_path, monkeypatch):
    words = [["seed=0"], ["seed=1", "loss.eps=0.1"], ["seed=2", "optim.lr=1e30"], ["seed=3"]]
    alone = [tiny_plan(tmp_path / "alone", *each) for each in words]
    for one in alone[:2]:
        execute(one)
    bank = Bank(monkeypatch)
    plans = [tiny_plan(tmp_path / "bank", *each) for each in words]
    ended = bank.train(plans)
    assert sorted(bank.recorded) == [0, 1, 2, 3]
    assert [kind for kind, *_ in ended] == ["finished", "finished", "failed", "finished"]
    assert "the training loss is not finite at step 2" in ended[2][1]
    for ours, theirs in zip(plans[:2], alone[:2], strict=True):
        for name, tensor in weights(theirs).items():
            assert torch.equal(weights(ours)[name], tensor), name


def test_a_bank_that_is_stopped_keeps_all_its_members_and_goes_on(tmp_path, monkeypatch):
    words = ["train.steps=900", "artifacts.checkpoint_seconds=1000"]
    bank = Bank(monkeypatch)
    plans = [tiny_plan(tmp_path / "bank", *words, f"seed={seed}") for seed in (0, 1)]
    looked = set()

    def stop(message):
        if message[0] == "look":
            looked.add(message[1])
        if len(looked) == 2 and message[0] == "look":
            looked.add(None)  # once
            os.kill(os.getpid(), signal.SIGTERM)

    assert [kind for kind, *_ in bank.train(plans, stop)] == ["stopped", "stopped"]
    for one in plans:
        assert len(list(one.folder.path.glob("attempt-*/checkpoint.pt"))) == 1
    assert [kind for kind, *_ in bank.train(plans)] == ["finished", "finished"]
    undisturbed = tiny_plan(tmp_path / "alone", *words, "seed=1")
    execute(undisturbed)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(plans[1])[name], tensor), name


def test_members_that_somebody_else_stopped_go_on_though_others_are_still_stopping(
    tmp_path, monkeypatch
):
    words = ["train.steps=900", "artifacts.checkpoint_seconds=1000"]
    plans = [tiny_plan(tmp_path / "bank", *words, f"seed={seed}") for seed in (0, 1, 2)]
    told = []

    def stop(message):
        told.append(message[0])
        if told.count("look") == 3 and told[-1] == "look":
            os.kill(os.getpid(), signal.SIGTERM)

    ended = Bank(monkeypatch).train(plans, stop, again=True)
    assert [kind for kind, *_ in ended] == ["finished"] * 3
    assert 1 <= told.count("stopped") <= 3


def test_a_member_that_waits_for_another_process_can_be_stopped(tmp_path):
    planned = tiny_plan(tmp_path / "runs")
    planned.folder.create(planned.config, planned.identity, planned.chosen)
    over = {"environment": {}, "over": lambda: False, "waiting": lambda _: None}
    claim = acquire(planned.folder.path, timeout=30, **over)
    with pytest.raises(local.Stopped, match="stopped by SIGTERM"):
        execute(planned, signals=["SIGTERM"])
    claim.release()


def test_a_run_that_ran_out_of_memory_beside_others_goes_on_alone(tmp_path):
    ours, theirs = multiprocessing.Pipe()
    config = tiny_plan(tmp_path).config
    tasks = [Task(config, {}, [], f"run {number}") for number in (0, 1)]
    worker = object.__new__(_Worker)
    worker.connection, worker.tasks = ours, {0, 1}
    pool = object.__new__(Pool)
    pool._workers = [worker]
    outcomes, todo, screen = [None, None], deque(), Silent()

    def tell():
        theirs.send(("alone", 0, "run 0: no memory"))
        pool._listen(tasks, outcomes, todo, deque(), screen, stopping=False)

    tell()
    assert (list(todo), worker.tasks, tasks[0].deaths) == ([0], {1}, 1)
    assert not worker.takes(0, tasks, 8)
    worker.tasks = {0}
    todo.clear()
    tell()  # alone too
    assert not todo
    assert outcomes[0].error == "run 0: no memory"


def test_a_device_that_is_lost_fails_no_run(tmp_path, monkeypatch):
    """All of a process's members lose it; they go on in another."""

    def lost(_member, **_):
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    monkeypatch.setattr(local, "stepper", lost)
    planned = tiny_plan(tmp_path / "runs")
    with pytest.raises(torch.AcceleratorError):
        execute(planned)
    assert not planned.folder.failure()
    assert not (planned.folder.path / "failure.json").exists()
    monkeypatch.undo()
    execute(planned)


def test_memory_that_runs_out_is_a_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    def full(_member, **_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(local, "stepper", full)
    planned = tiny_plan(tmp_path / "runs")
    with pytest.raises(
        local.OutOfMemory, match=r"allocate 2 GiB; fewer runs at once \(workers=1\)"
    ):
        execute(planned)
    monkeypatch.undo()
    execute(planned)
