"""What a dry run says of a run as it stands, and plans for a device that is not here."""

import json
import os
import time

import pytest
import torch
from support import TINY, tiny_plan

from lsexp import compose
from lsexp.errors import UserError
from lsexp.launch import plan as planning
from lsexp.launch.plan import describe_state, plan
from lsexp.runs.catalog import read_run


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setattr(planning, "seconds_of_training", lambda _: 60.0)


def made(tmp_path, *words):
    """A run whose folder is there."""
    found = tiny_plan(tmp_path, *words)
    found.folder.create(found.config, found.identity, found.chosen)
    return found


@pytest.mark.parametrize(
    ("age", "status", "said"),
    [
        (0, "running", "being trained by process 12 on node7"),
        (99, "interrupted", "to do; about 1 min 0 s left"),
    ],
)
def test_who_trains_it_is_judged_as_by_the_table_of_runs(tmp_path, timed, age, status, said):
    found = made(tmp_path)
    folder = found.folder.path
    record = {"nonce": "a" * 16, "host": "node7", "machine": "node7/before its boot", "pid": 12}
    (folder / "claim.json").write_text(json.dumps(record))
    beat = folder / f"attempt-{record['nonce']}" / "beat"
    beat.parent.mkdir()
    beat.write_text("3")
    os.utime(beat, (time.time() - age, time.time() - age))
    assert read_run(folder).status == status
    assert said in describe_state(found)


def test_a_failed_run_that_is_to_be_trained_again_has_its_cost(tmp_path, timed):
    found = made(tmp_path)
    (found.folder.path / "failure.json").write_text('{"error": "no luck"}')
    assert describe_state(found).endswith("failed: no luck; retry_failed=true trains it again")
    assert describe_state(tiny_plan(tmp_path, "retry_failed=true")).endswith(
        "failed before (no luck), to do again; about 1 min 0 s left on this machine, evaluation "
        "apart"
    )


def test_without_the_device_auto_is_the_precision_that_was_found_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [*TINY, f"runs_dir={tmp_path}", "precision=auto", "device=cuda"]
    [(config, chosen)] = compose.train_configs(words)
    with pytest.raises(UserError, match=r"device=cuda: .* finds no CUDA device here"):
        plan(config, chosen, [], remember=False)
    monkeypatch.setattr(planning, "choose_precision", lambda _: "bf16")
    trained = tiny_plan(tmp_path, "precision=auto")  # as if it were on another machine
    assert plan(config, chosen, [], remember=False).folder.path == trained.folder.path
    assert "bf16" in planning.describe_training(trained)


def test_a_plan_by_which_nothing_is_trained_needs_no_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [*TINY, f"runs_dir={tmp_path}", "precision=fp32", "device=cuda"]
    [(config, chosen)] = compose.train_configs(words)
    found = plan(config, chosen, [], remember=False)
    assert found.folder.path == tiny_plan(tmp_path, "precision=fp32").folder.path
    for needs in (lambda: plan(config, chosen, []), lambda: describe_state(found)):
        with pytest.raises(UserError, match=r"device=cuda: .* finds no CUDA device here"):
            needs()
