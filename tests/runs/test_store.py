import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import tiny_plan

from lsexp.config import revived
from lsexp.errors import UserError
from lsexp.files import replace_file, whose
from lsexp.runs import claims
from lsexp.runs.claims import acquire
from lsexp.runs.store import Damaged, RunFolder, config_of, elsewhere, sealed


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def claim_of(folder):
    return acquire(
        folder.path, timeout=99, environment={}, over=lambda: False, waiting=lambda _r: None
    )


METRICS = sealed({"who": 1, "checksums": {}})
TEXT = json.dumps(METRICS)


def complete(claim, metrics=TEXT):
    (claim.attempt / "model.safetensors").write_text(metrics)
    (claim.attempt / "metrics.json").write_text(metrics)


def names(folder):
    return sorted(path.name for path in folder.path.iterdir())


def test_a_published_attempt_is_the_result_and_nothing_else_is_left(folder):
    claim = claim_of(folder)
    complete(claim)
    assert not folder.finished()
    assert folder.publish(claim)
    assert folder.finished()
    assert names(folder) == ["metrics.json", "model.safetensors"]
    assert folder.metrics() == METRICS


def test_the_first_to_publish_wins_and_the_second_leaves_no_trace(folder):
    first = claim_of(folder)
    complete(first, '{"who": 1}')
    first.stop_beat()
    second_attempt = folder.path / "attempt-second"
    second_attempt.mkdir()
    (second_attempt / "metrics.json").write_text('{"who": 2}')
    (second_attempt / "model.safetensors").write_text('{"who": 2}')
    assert folder.publish(first)
    # A process that slept through all that, just before its rename:
    folder.path.joinpath("attempt-second").mkdir()
    (second_attempt / "model.safetensors").write_text('{"who": 2}')
    second_attempt.rename(folder.path / "publishing")
    folder.settle()
    assert (folder.path / "model.safetensors").read_text() == '{"who": 1}'
    assert names(folder) == ["metrics.json", "model.safetensors"]


def test_an_owner_that_was_taken_over_does_not_publish(folder):
    claim = claim_of(folder)
    complete(claim)
    heir = {"nonce": "b" * 16, "machine": "elsewhere"}
    claims.create_exclusively(folder.path / f"claim-after-{claim.record['nonce']}.json", heir)
    assert not folder.publish(claim)
    assert not folder.finished()
    assert claim.attempt.exists()  # until the heir has what it needs of it


def test_an_owner_whose_attempt_was_taken_away_does_not_publish(folder):
    claim = claim_of(folder)
    complete(claim)
    folder.remove_attempts()
    assert not folder.publish(claim)
    assert not folder.finished()


def test_a_publishing_that_was_cut_off_is_carried_through(folder):
    claim = claim_of(folder)
    complete(claim)
    claim.stop_beat()
    claim.attempt.rename(folder.path / "publishing")
    (folder.path / "publishing" / "model.safetensors").rename(folder.path / "model.safetensors")
    assert folder.finished()
    assert names(folder) == ["metrics.json", "model.safetensors"]


def test_a_sleeping_publisher_cannot_move_the_files_of_a_later_one(folder, monkeypatch):
    """A opens `publishing` and sleeps; B carries it through; C's late attempt stands there now."""
    claim = claim_of(folder)
    complete(claim, '{"who": "A"}')
    claim.stop_beat()
    claim.attempt.rename(folder.path / "publishing")
    listdir, late = os.listdir, folder.path / "publishing"

    def sleep_then_list(descriptor):
        monkeypatch.setattr(os, "listdir", listdir)
        found = listdir(descriptor)
        folder.settle()  # B
        late.mkdir()
        (late / "model.safetensors").write_text('{"who": "C"}')
        (late / "metrics.json").write_text('{"who": "C"}')
        return found

    monkeypatch.setattr(os, "listdir", sleep_then_list)
    folder.settle()  # A
    folder.settle()
    assert (folder.path / "model.safetensors").read_text() == '{"who": "A"}'
    assert names(folder) == ["metrics.json", "model.safetensors"]


@pytest.mark.parametrize("keep", [True, False])
def test_a_failure_is_kept_with_its_history_until_it_is_forgotten(folder, keep):
    claim = claim_of(folder)
    (claim.attempt / "history.csv").write_text("epoch\n")
    (claim.attempt / "checkpoint.pt").write_text("kept")
    folder.fail(claim, {"error": "why"}, keep_checkpoint=keep)
    assert folder.failure() == {"error": "why"}
    assert (folder.path / "history.csv").read_text() == "epoch\n"
    assert len(folder.checkpoints()) == keep
    assert claims.owner(folder.path)["released"]
    folder.forget_failure()
    assert folder.failure() is None


def test_a_failure_that_cannot_be_written_lets_go_all_the_same(folder, monkeypatch):
    claim = claim_of(folder)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lsexp.runs.store.replace_file", full)
    with pytest.raises(OSError, match="No space left"):
        folder.fail(claim, {"error": "why"}, keep_checkpoint=True)
    assert claims.owner(folder.path)["released"]


def test_a_failure_that_cannot_be_read_is_one(folder):
    (folder.path / "failure.json").write_text("")
    assert folder.failure() == {"error": "failure.json: damaged"}


def test_metrics_that_are_gone_are_damage(folder):
    with pytest.raises(Damaged, match=r"metrics\.json: missing"):
        folder.verified_metrics()


def test_a_failure_of_one_that_was_taken_over_is_not_recorded(folder):
    claim = claim_of(folder)
    heir = {"nonce": "b" * 16, "machine": "elsewhere"}
    claims.create_exclusively(folder.path / f"claim-after-{claim.record['nonce']}.json", heir)
    folder.fail(claim, {"error": "why"}, keep_checkpoint=False)
    assert folder.failure() is None
    assert claims.owner(folder.path)["nonce"] == "b" * 16


def test_a_failure_that_comes_late_does_not_take_the_run_from_its_heir(folder, monkeypatch):
    """A finds its claim held and sleeps; B takes over; A writes its failure; B goes on."""
    claim = claim_of(folder)
    heir = {"nonce": "b" * 16, "machine": "elsewhere"}
    held = claim.held

    def sleep_after_looking():
        answer = held()
        path = folder.path / f"claim-after-{claim.record['nonce']}.json"
        claims.create_exclusively(path, heir)
        return answer

    monkeypatch.setattr(claim, "held", sleep_after_looking)
    folder.fail(claim, {"error": "why"}, keep_checkpoint=True)
    assert claims.owner(folder.path)["nonce"] == "b" * 16


def test_an_attempt_is_published_whole_or_removed_whole(folder, monkeypatch):
    """The heir removes an attempt in the moment in which its owner publishes it."""
    claim = claim_of(folder)
    complete(claim)
    other = RunFolder(folder.path)
    rename = Path.rename

    def removed_just_before(path, target):
        if path == claim.attempt and Path(target).name == "publishing":
            monkeypatch.setattr(Path, "rename", rename)
            other.remove_attempts()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", removed_just_before)
    assert not folder.publish(claim)
    assert not folder.finished()
    assert [n for n in names(folder) if not n.startswith("claim")] == []


def test_what_people_put_into_a_finished_run_stays(folder):
    claim = claim_of(folder)
    complete(claim)
    folder.publish(claim)
    (folder.path / ".ipynb_checkpoints").mkdir()
    (folder.path / ".note").write_text("mine")
    mine = f".mine{whose()}"
    (folder.path / mine).write_text("of a process that is at work")
    assert folder.finished()
    kept = [".ipynb_checkpoints", mine, ".note", "metrics.json", "model.safetensors"]
    assert names(folder) == sorted(kept)


def test_a_config_of_another_experiment_is_damage_and_made_anew(tmp_path):
    """Its digest is in the folder's name, so that no other could be there."""
    plan = tiny_plan(tmp_path)
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    path = plan.folder.path / "config.yaml"
    was = path.read_text()
    stored = yaml.safe_load(was)
    stored["identity"]["optim.lr"] = 0.5
    path.write_text(yaml.safe_dump(stored))
    assert plan.folder.identity() is None
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    assert path.read_text() == was


def test_a_published_folder_takes_the_place_of_an_old_one_file_by_file(folder):
    claim = claim_of(folder)
    complete(claim)
    for place, names_in in ((folder.path, "ab"), (claim.attempt, "bc")):
        (place / "snapshots").mkdir()
        for name in names_in:
            (place / "snapshots" / name).write_text(f"{name} of {place.name}")
    attempt = claim.attempt.name
    assert folder.publish(claim)
    found = {path.name: path.read_text() for path in (folder.path / "snapshots").iterdir()}
    assert found == {
        "a": f"a of {folder.path.name}",
        "b": f"b of {attempt}",
        "c": f"c of {attempt}",
    }
    assert names(folder) == ["metrics.json", "model.safetensors", "snapshots"]


@pytest.mark.parametrize("content", ["", "{", "a: b", "[1]", "\0"])
def test_a_damaged_config_is_made_anew_but_in_a_finished_run(tmp_path, content):
    plan = tiny_plan(tmp_path)
    plan.folder.path.mkdir()
    path = plan.folder.path / "config.yaml"
    path.write_text(content)
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    assert plan.folder.identity() == plan.identity
    path.write_text(content)
    (plan.folder.path / "metrics.json").write_text("{}")
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]1", "[]", "null", "{}"])
def test_damaged_metrics_are_told_by_their_file(folder, content):
    (folder.path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: damaged"):
        folder.metrics()


def test_config_yaml_holds_every_key_in_effect(tmp_path):
    plan = tiny_plan(tmp_path, "loss.eps=0.1")
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    stored = yaml.safe_load((plan.folder.path / "config.yaml").read_text())
    assert stored["chosen"] == {"recipe": "digits_mlp", "budget": "smoke"}
    assert stored["model"] == {
        "name": "mlp",
        "widths": [128, 128],
        "dropout": 0.0,
        "init_std": None,
    }
    assert stored["loss"]["eps"] == 0.1
    assert stored["train"] == {
        "steps": 50,
        "epochs": None,
        "batch_size": 64,
        "evals": None,
    }
    assert stored["identity"] == plan.identity


@pytest.mark.parametrize("unwanted", ["SafeLoader", "CSafeLoader"])
def test_config_yaml_is_read_as_it_was_written(tmp_path, monkeypatch, unwanted):
    """By the loader in C where there is one, else by the other."""
    if not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without its part in C")
    plan = tiny_plan(tmp_path, "optim.lr_scale={head: 0.1}", "optim.lr=1e-4", "data.path=null")
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    if unwanted == "CSafeLoader":
        monkeypatch.delattr(yaml, unwanted)
    else:
        monkeypatch.setattr(yaml, unwanted, None)
    config, identity = config_of(plan.folder.path)
    assert identity == plan.identity == plan.folder.identity()
    assert (config["recipe"], config["budget"]) == ("digits_mlp", "smoke")
    assert config["optim.lr_scale"] == {"head": 0.1}
    again = replace(revived(config), budgets=plan.config.budgets, budget=plan.config.budget)
    assert again == plan.config


@pytest.mark.parametrize("key", ["identity", "chosen"])
def test_a_config_that_lacks_a_part_is_damage(tmp_path, key):
    plan = tiny_plan(tmp_path)
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    path = plan.folder.path / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    del stored[key]
    path.write_text(yaml.safe_dump(stored))
    assert plan.folder.identity() is None


def test_a_process_killed_while_it_writes_leaves_nothing_behind_in_a_finished_run(folder):
    pid = os.fork()
    if pid == 0:
        os.fsync = lambda _descriptor: os.kill(os.getpid(), signal.SIGKILL)
        replace_file(folder.path / "config.yaml", "half")
    os.waitpid(pid, 0)
    assert any(name.startswith(".config.yaml") for name in names(folder))
    claim = claim_of(folder)
    complete(claim)
    folder.publish(claim)
    assert names(folder) == ["metrics.json", "model.safetensors"]


def test_checkpoints_that_are_outdated_do_not_count_and_later_ones_do(folder):
    folder.outdate_checkpoints()
    assert not folder.checkpoints() + names(folder)  # there were none
    old, new = (folder.path / f"attempt-{k}" / "checkpoint.pt" for k in "12")
    old.parent.mkdir()
    old.touch()
    assert folder.checkpoints() == [old]
    folder.outdate_checkpoints()
    assert folder.checkpoints() == []
    new.parent.mkdir()
    new.touch()
    later = (folder.path / "restart").stat().st_mtime_ns + 1
    os.utime(new, ns=(later, later))
    assert folder.checkpoints() == [new]
    (folder.path / "metrics.json").write_text(TEXT)
    assert folder.finished()
    assert names(folder) == ["metrics.json"]


def test_a_command_that_is_told_names_the_folder_of_runs_unless_it_is_the_usual(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LSEXP_RUNS_DIR", raising=False)
    assert elsewhere(Path("runs")) == elsewhere(tmp_path / "runs") == ""
    assert elsewhere(Path("my runs")) == " runs_dir='my runs'"
    monkeypatch.setenv("LSEXP_RUNS_DIR", "my runs")
    assert elsewhere(tmp_path / "my runs") == ""
    assert elsewhere(Path("runs")) == " runs_dir=runs"
    told = str(Damaged(Path("runs/a/snapshots/b"), "cut", "a"))
    assert told == "runs/a/snapshots/b: cut; `lsexp runs repair a runs_dir=runs` makes it again"
