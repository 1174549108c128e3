"""Snapshots: asked for at the start, later, and over an interruption; the run stays what it is."""

import errno
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from support import TINY, change_metrics, lsexp, names, tiny_plan, until_it_saves, weights

from lsexp.errors import UserError
from lsexp.files import replace_file, sha256_of
from lsexp.launch import local
from lsexp.launch.local import execute
from lsexp.runs.store import RunFolder, aside_of, snapshot_of, snapshot_path
from lsexp.runs.tensors import unpacked
from lsexp.studies import Run
from lsexp.sweep.work import Planned, joined
from lsexp.training.member import step as take_step
from lsexp.training.snapshots import snapshot_steps

ASKED = "artifacts.snapshots=7"
STEPS = snapshot_steps(50, 7)


def snapshot(folder, step):
    what = snapshot_of(RunFolder(folder).metrics()["identity"], step)
    return unpacked(snapshot_path(folder, step), what)


def kept(folder):
    steps = [int(name[5:].split(".")[0]) for name in names(folder / "snapshots")]
    return {step: snapshot(folder, step) for step in steps}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was trained with snapshots."""
    plan = tiny_plan(tmp_path_factory.mktemp("whole"), ASKED)
    execute(plan)
    return plan.folder.path


def test_snapshots_are_the_weights_on_the_way(whole, tmp_path):
    assert names(whole / "snapshots") == {f"step-{step}.safetensors" for step in STEPS}
    for step in STEPS[:4]:
        member = tiny_plan(tmp_path).member(tiny_plan(tmp_path).images("train"))
        for _ in range(step):
            take_step(member)
        found = snapshot(whole, step)
        expected = member.model.state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value.numpy())


def test_they_change_neither_name_nor_weights(whole, tmp_path):
    plan = tiny_plan(tmp_path)
    execute(plan)
    assert plan.folder.path.name == whole.name
    assert weights(plan.folder.path) == weights(whole)


def test_a_finished_run_gets_them_from_a_training_aside(whole, tmp_path):
    plan = tiny_plan(tmp_path)
    execute(plan)
    folder = plan.folder.path
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = tiny_plan(tmp_path, ASKED)
    assert not again.done()
    execute(again)
    assert again.done()
    assert names(folder) == {*before, "snapshots"}
    for name, content in before.items():
        assert (folder / name).read_bytes() == content
    for name, arrays in kept(whole).items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(kept(folder)[name][key], value)
    assert not (tmp_path / ".aside").exists()


def test_fewer_of_them_are_another_question(whole):
    assert tiny_plan(whole.parent, ASKED).done()
    assert not tiny_plan(whole.parent, "artifacts.snapshots=20").done()
    assert tiny_plan(whole.parent).done()


def test_other_weights_are_told_and_nothing_is_added(tmp_path):
    plan = tiny_plan(tmp_path)
    execute(plan)
    folder = plan.folder.path
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    now = {"model.safetensors": sha256_of(folder / "model.safetensors")}
    change_metrics(folder, "checksums", **now)
    with pytest.raises(UserError, match=r"ended in other weights: .* `lsexp runs rm digits-"):
        execute(tiny_plan(tmp_path, ASKED))
    assert not names(folder / "snapshots")
    assert not list(tmp_path.glob(".aside/*/*"))  # another machine may do it


def test_what_could_not_end_alike_is_not_trained(tmp_path):
    plan = tiny_plan(tmp_path)
    execute(plan)
    segments = plan.folder.metrics()["provenance"]["segments"]
    segments[0]["environment"]["torch"] = "1.0"
    change_metrics(plan.folder.path, "provenance", segments=segments)
    with pytest.raises(UserError, match=r"was trained with torch 1\.0, here it is .*resume=any"):
        execute(tiny_plan(tmp_path, ASKED))
    assert not (tmp_path / ".aside").exists()
    execute(tiny_plan(tmp_path, ASKED, "resume=any"))
    assert len(names(plan.folder.path / "snapshots")) == len(STEPS)


def test_a_kill_while_they_are_taken_over_costs_no_training(tmp_path, monkeypatch):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    calls = []

    def dies(path, content):
        if path.parent == plan.folder.path / "snapshots":
            calls.append(path)
            if len(calls) == 3:
                raise KeyboardInterrupt
        replace_file(path, content)

    monkeypatch.setattr(local, "replace_file", dies)
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    monkeypatch.setattr(local, "_train", None)  # nothing may be trained
    execute(plan)
    assert plan.done()
    assert not (tmp_path / ".aside").exists()


def test_a_training_aside_for_another_number_is_left_alone(tmp_path):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    others = tiny_plan(tmp_path, "artifacts.snapshots=3")
    aside = aside_of(plan.folder.path, 3)
    execute(replace(others, folder=RunFolder(aside)))
    execute(plan)
    assert plan.done()
    assert RunFolder(aside).finished()
    execute(others)
    assert others.done()
    assert not (tmp_path / ".aside").exists()


def test_what_another_process_has_taken_over_is_not_trained_again(tmp_path, monkeypatch):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    take_over, trained = local._take_over, []

    def another_is_first(plan, metrics, aside, again):
        trained.append(aside.path)
        assert take_over(plan, metrics, aside, again)
        shutil.rmtree(aside.path)
        raise FileNotFoundError(aside.path)

    monkeypatch.setattr(local, "_take_over", another_is_first)
    execute(plan)
    assert plan.done()
    assert len(trained) == 1


def test_an_aside_that_is_removed_on_the_way_is_trained_again(tmp_path, monkeypatch):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    take_over, trained = local._take_over, []

    def removed_first(plan, metrics, aside, again):
        trained.append(aside.path)
        if len(trained) == 1:
            shutil.rmtree(aside.path)
        return take_over(plan, metrics, aside, again)

    monkeypatch.setattr(local, "_take_over", removed_first)
    execute(plan)
    assert plan.done()
    assert len(trained) == 2


@pytest.mark.parametrize("what", ["removed", "damaged"])
def test_an_aside_that_lacks_a_snapshot_is_trained_again(tmp_path, what):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    aside = RunFolder(aside_of(plan.folder.path, 7))
    execute(replace(plan, folder=aside))
    if what == "removed":
        aside.snapshot(STEPS[2]).unlink()
    else:
        aside.snapshot(STEPS[2]).write_bytes(b"")
    execute(plan)
    assert plan.done()
    assert all(plan.has(plan.folder.path, step) for step in STEPS)
    assert not (tmp_path / ".aside").exists()


def test_two_that_want_other_steps_are_told_before_training(tmp_path):
    plans = [tiny_plan(tmp_path, f"artifacts.snapshots={count}") for count in (7, 1, 0, 12)]
    rows = [[Planned(Run({}, one.config), one, None)] for one in plans]
    assert [one.plan for one in joined(rows[:3])] == [plans[0]]
    assert [one.plan for one in joined([rows[1], rows[0]])] == [plans[0]]
    with pytest.raises(UserError, match=r"snapshots=12: another study has 7 of the same"):
        joined(rows)


def test_a_disk_that_is_full_gets_one_line(tmp_path, monkeypatch):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_take_over", full)
    with pytest.raises(UserError, match="No space left on device; once that is mended"):
        execute(plan)


def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    execute(tiny_plan(tmp_path))
    plan = tiny_plan(tmp_path, ASKED)
    (plan.folder.path / "snapshots").write_text("in the way")
    with pytest.raises(UserError, match="File exists"):
        execute(plan)
    assert not (tmp_path / ".aside").exists()


def test_a_snapshot_that_was_removed_comes_back(tmp_path):
    plan = tiny_plan(tmp_path, ASKED)
    execute(plan)
    path = plan.folder.snapshot(STEPS[2])
    content = path.read_bytes()
    path.unlink()
    execute(plan)
    assert path.read_bytes() == content


LONG = ["train.steps=1200", "artifacts.checkpoint_seconds=0.1"]


def test_they_outlive_a_kill_though_the_next_command_asks_for_none(tmp_path):
    words = ["train", *TINY, *LONG]
    process = lsexp(*words, "artifacts.snapshots=9", cwd=tmp_path, start=True)
    until_it_saves(tmp_path / "runs", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = lsexp(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    undisturbed = tiny_plan(tmp_path / "alone", *LONG, "artifacts.snapshots=9")
    execute(undisturbed)
    assert weights(folder) == weights(undisturbed.folder.path)
    expected = kept(undisturbed.folder.path)
    assert kept(folder).keys() == expected.keys()
    for name, arrays in expected.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(kept(folder)[name][key], value)


def test_a_run_that_was_begun_without_begins_again(tmp_path):
    words = ["train", *TINY, *LONG]
    process = lsexp(*words, cwd=tmp_path, start=True)
    until_it_saves(tmp_path / "runs", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = lsexp(*words, "artifacts.snapshots=9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "of the snapshots asked for; the run begins again" in done.stderr
    assert "continuing" not in done.stderr
    folder = tmp_path / done.stdout.splitlines()[-1]
    assert len(names(folder / "snapshots")) == 8


def test_a_dry_run_tells_what_they_would_cost(tmp_path):
    plan = tiny_plan(tmp_path)
    execute(plan)
    done = lsexp(
        "train", *TINY, f"runs_dir={tmp_path}", ASKED, "--dry-run", cwd=tmp_path
    )  # fmt: skip
    assert "finished, but for 6 snapshots; about " in done.stdout
