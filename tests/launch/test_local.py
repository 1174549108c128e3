"""Runs that another process has begun: from where they go on."""

import json
from dataclasses import replace

import pytest
from support import FINISHED, names, tiny_plan

from lsexp.launch.local import Stopped, begin_again, execute
from lsexp.launch.progress import View


def begin(plan):
    """Train until there is a checkpoint, and stop there."""
    signals = []

    def view(**steps):
        signals.append("SIGTERM")
        return View(**steps)

    with pytest.raises(Stopped, match="nothing is lost"):
        execute(plan, view=view, signals=signals)


def killed_elsewhere(plan):
    """A run that a process of another machine has begun and cannot let go of any more."""
    begin(plan)
    [attempt] = plan.folder.path.glob("attempt-*")
    for path in plan.folder.path.glob("claim*.json"):
        path.unlink()
    record = {"nonce": attempt.name.removeprefix("attempt-"), "machine": "elsewhere/1", "pid": 1}
    (plan.folder.path / "claim.json").write_text(json.dumps(record))
    (attempt / "beat").write_text("7")


def impatient(plan):
    return replace(plan, config=replace(plan.config, claim_timeout=0.3))


def test_a_restart_of_what_another_machine_has_begun_begins_at_step_0_and_once(tmp_path, capsys):
    killed_elsewhere(tiny_plan(tmp_path))
    assert tiny_plan(tmp_path).folder.checkpoints()
    workers = impatient(begin_again(tiny_plan(tmp_path, "resume=restart")))
    begin(workers)
    assert "continuing" not in capsys.readouterr().err
    execute(workers)  # as another that takes the run over
    assert "continuing" in capsys.readouterr().err
    assert names(workers.folder.path) == FINISHED


def test_a_restart_takes_no_checkpoint_that_is_made_after_it(tmp_path, capsys):
    """Another process trains the run really, and is stopped later."""
    plan = tiny_plan(tmp_path)
    killed_elsewhere(plan)
    again = impatient(begin_again(tiny_plan(tmp_path, "resume=restart")))
    [checkpoint] = plan.folder.path.glob("attempt-*/checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes())
    execute(again)
    assert "continuing" in capsys.readouterr().err
