"""The words of the command, pinned: changing one is a decision."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import FINISHED, lsexp, names, tiny_plan, until_it_saves

from lsexp import compose
from lsexp.cli import main
from lsexp.launch.local import begin_again
from lsexp.runs.claims import acquire
from lsexp.training.checkpoint import pack

SMOKE = ["budget=smoke", "threads=1", "artifacts.tensorboard=false"]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LSEXP_RUNS_DIR", raising=False)
    monkeypatch.setenv("LSEXP_DATA_DIR", str(tmp_path / "data"))


def run(capsys, *words):
    """(exit code, lines of stdout, text of stderr)"""
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


# Help and plans


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(capsys, words):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert any(line.startswith("  lsexp train [key=value ...]") for line in out)


def test_help_of_train_lists_groups_and_every_key_with_its_default(capsys):
    code, out, err = run(capsys, "train", "--help")
    text = "\n".join(out)
    assert (code, err) == (0, "")
    for word in (
        "digits_mlp",
        "mnist_mlp",
        "smoke",
        "npz",
        "imagefolder",
        "loss.eps=0.0",
        "model.widths=",
        "optim.lr_scale=",
        "resume=exact",
        "retry_failed=false",
        "--dry-run",
        "--cfg job",
    ):
        assert word in text, word


def test_version(capsys):
    assert re.fullmatch(r"lsexp \d+\.\d+\.\d+", run(capsys, "--version")[1][0])


def test_help_answers_at_once_and_without_torch(tmp_path):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "lsexp.cli", "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
    assert min(times) < 0.5
    code = (
        "import sys; from lsexp.cli import main; main(['train', '--help']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_training_imports_nothing_large_that_it_does_not_use(tmp_path):
    """`torch._dynamo` alone would take as long as torch."""
    code = (
        "import sys; from lsexp.cli import main; main(sys.argv[1:]); "
        "print({'torch', 'torch._dynamo', 'scipy.special', 'matplotlib'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "train", "budget=smoke"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "{'torch'}"


def test_help_into_a_closed_pipe_is_quiet(tmp_path):
    command = f"{sys.executable} -m lsexp.cli train --help | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.startswith("lsexp train")
    assert done.stderr == ""


def test_cfg_job_prints_the_config_and_trains_nothing(capsys, tmp_path):
    code, out, err = run(capsys, "train", "loss.eps=0.1", "--cfg", "job")
    assert (code, err) == (0, "")
    assert "  eps: 0.1" in out
    assert names(tmp_path) == set()
    assert "  steps: 1800" in run(capsys, "train", "--resolve", "--cfg=job")[1]


def test_dry_run_says_what_is_left_and_writes_nothing(capsys, tmp_path):
    code, out, err = run(capsys, "train", *SMOKE, "--dry-run", "loss.eps=0.1")
    assert (code, err) == (0, "")
    assert out[0].startswith("run      runs/digits-mlp-eps0.1-seed0-")
    assert any(re.match(r"state    to do; about .* left on this machine", line) for line in out)
    assert names(tmp_path) == set()
    run(capsys, "train", *SMOKE, "loss.eps=0.1")
    assert "state    finished" in run(capsys, "train", *SMOKE, "--dry-run", "loss.eps=0.1")[1]


# Runs


def test_train_leaves_a_finished_folder_and_prints_its_path_last(capsys, tmp_path):
    code, out, err = run(capsys, "train", *SMOKE, "loss.eps=0.1")
    assert code == 0
    assert re.fullmatch(r"runs/digits-mlp-eps0\.1-seed0-[0-9a-f]{12}", out[-1])
    assert names(tmp_path) == {"runs"}  # no logs or folders of Hydra's
    folder = tmp_path / out[-1]
    assert names(folder) == FINISHED
    assert "true class 0.91, others 0.01 each" in err
    assert "logit gap at the optimum 4.511" in err

    metrics = json.loads((folder / "metrics.json").read_text())
    for split in ("val", "test"):
        assert set(metrics[split]) == {"accuracy", "nll", "ece", "brier"}
        assert 0.8 < metrics[split]["accuracy"] <= 1
    assert metrics["steps"] == 50
    assert metrics["best_val"]["step"] <= 50
    assert metrics["best_val"]["val"]["accuracy"] >= metrics["val"]["accuracy"]
    assert metrics["targets"]["true"] == pytest.approx(0.91)
    provenance = metrics["provenance"]
    assert provenance["threads"] == 1
    assert provenance["precision"] == "fp32"
    assert provenance["recipe"] == "digits_mlp"
    assert provenance["command"][:2] == ["lsexp", "train"]
    assert {"commit", "dirty"} <= set(provenance["git"])
    assert [part["from_step"] for part in provenance["segments"]] == [0]

    outputs = load_file(folder / "outputs.safetensors")
    assert outputs["test.logits"].dtype == np.float32
    assert outputs["val.logits"].shape == (288, 10)
    right = (outputs["test.logits"].argmax(1) == outputs["test.labels"]).mean()
    assert right == pytest.approx(metrics["test"]["accuracy"])
    assert not set(outputs["train.indices"]) & set(outputs["val.indices"])


def test_a_finished_run_is_not_trained_again(capsys, tmp_path):
    _, first, _ = run(capsys, "train", *SMOKE)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / first[-1]).iterdir()}
    code, second, _ = run(capsys, "train", *SMOKE)
    assert (code, second) == (0, first)
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / first[-1]).iterdir()}


def test_how_a_run_is_asked_for_does_not_matter(capsys):
    _, first, _ = run(capsys, "train", *SMOKE)
    same = ["train", "train.steps=50", "threads=2", "data.train_size=1150", "device=cpu"]
    assert run(capsys, *same)[1][-1] == first[-1]


def test_equal_configs_give_equal_weights_and_seeds_others(capsys, tmp_path):
    def logits(*words):
        folder = tmp_path / run(capsys, "train", *SMOKE, *words)[1][-1]
        return load_file(folder / "outputs.safetensors")["test.logits"]

    first = logits("runs_dir=a")
    assert (first == logits("runs_dir=b")).all()
    assert (first != logits("runs_dir=a", "seed=1")).any()


def test_a_multirun_fills_the_same_folders(capsys, tmp_path):
    code, out, _ = run(capsys, "train", *SMOKE, "-m", "loss.eps=0,0.1", "seed=1,2")
    folders = [line for line in out if line.startswith("runs/")]
    assert (code, len(folders), names(tmp_path)) == (0, 4, {"runs"})
    assert run(capsys, "train", *SMOKE, "loss.eps=0.1", "seed=2")[1][-1] in folders


def test_both_conventions_of_smoothing_meet(capsys, tmp_path):
    """eps spread over all K = 10 classes is eps * 9 / 10 spread over the others."""
    first = run(capsys, "train", *SMOKE, "loss.eps=0.1")[1][-1]
    second = run(capsys, "train", *SMOKE, "loss.eps=0.09", "loss.spread=others")[1][-1]
    assert first != second
    assert names(tmp_path / "runs") == {first[5:], second[5:]}
    a, b = (load_file(tmp_path / f / "outputs.safetensors")["test.logits"] for f in (first, second))
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_full_split_trains_without_val(capsys, tmp_path):
    code, out, _ = run(capsys, "train", *SMOKE, "data.split=full")
    metrics = json.loads((tmp_path / out[-1] / "metrics.json").read_text())
    assert code == 0
    assert metrics["val"] is None
    assert metrics["best_val"] is None
    assert metrics["train"]["images"] == 1438


def test_runs_dir_from_the_environment(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LSEXP_RUNS_DIR", str(tmp_path / "elsewhere"))
    assert run(capsys, "train", *SMOKE)[1][-1].startswith(str(tmp_path / "elsewhere"))


def test_own_images_in_an_npz(capsys, tmp_path):
    rng = np.random.RandomState(0)
    labels = np.arange(60) % 3
    images = (rng.rand(60, 9, 7, 3) * 100 + 50 * labels[:, None, None, None]).astype(np.uint8)
    file = tmp_path / "three colours.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    words = ["data=npz", f"data.path={file}", "model.widths=[16]", "augment.shift=2"]
    code, out, err = run(capsys, "train", *SMOKE, *words)
    assert code == 0, err
    assert out[-1].startswith("runs/three_colours-mlp-eps0-seed0-")
    assert "48 train, 12 val, 9 test, 3 classes" in err
    made = "recipe   digits_mlp, budget smoke: made for digits, its rate and schedule too; recipe= "
    assert made in err


def test_own_recipes(capsys, tmp_path):
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "narrow.yaml").write_text(
        "# @package _global_\ndefaults: [digits_mlp]\nmodel: {widths: [8]}\n"
    )
    code, out, err = run(capsys, "train", *SMOKE, "--config-dir", "mine", "recipe=narrow")
    assert code == 0, err
    assert "recipe   narrow, budget smoke" in err
    assert load_file(tmp_path / out[-1] / "model.safetensors")["hidden.0.weight"].shape == (8, 64)


def test_tensorboard_scalars(capsys, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / run(capsys, "train", "budget=smoke", "threads=1")[1][-1]
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = {"lr", "train/loss", "train/accuracy", "val/accuracy", "val/nll"}
    assert set(events.Tags()["scalars"]) == tags
    assert [scalar.step for scalar in events.Scalars("val/nll")] == [18, 36, 50]


# Failures


def test_divergence_is_a_failure_that_names_the_step(capsys, tmp_path):
    words = ["train", *SMOKE, "optim.lr=1e30"]
    code, out, err = run(capsys, *words)
    folder = next((tmp_path / "runs").iterdir())
    failure = json.loads((folder / "failure.json").read_text())
    assert (code, out) == (1, [])
    step = failure["where"]["step"]
    assert f"not finite at step {step}" in err.splitlines()[-1]
    assert "Diverged" in failure["error"]
    assert "Traceback" in failure["traceback"]
    assert not list(folder.glob("attempt-*"))

    code, out, err = run(capsys, *words)
    assert (code, out) == (1, [])
    assert "failed before" in err
    assert "retry_failed=true" in err
    code, _, err = run(capsys, *words, "retry_failed=true")
    assert code == 1
    assert "not finite at step" in err


def test_a_bug_keeps_its_traceback_and_is_recorded(capsys, tmp_path, monkeypatch):
    def broken(*_arguments, **_keywords):
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("lsexp.launch.local.train", broken)
        with pytest.raises(ZeroDivisionError):
            main(["train", *SMOKE])
    folder = next((tmp_path / "runs").iterdir())
    assert "a bug" in json.loads((folder / "failure.json").read_text())["error"]
    capsys.readouterr()
    assert run(capsys, "train", *SMOKE, "retry_failed=true")[0] == 0
    assert names(folder) == FINISHED


def test_an_error_in_the_middle_keeps_the_checkpoint_for_another_try(capsys, monkeypatch):
    words = ["train", *SMOKE, "artifacts.checkpoint_seconds=0"]

    def broken(*_arguments):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("lsexp.launch.local.write_results", broken)
        with pytest.raises(RuntimeError):
            main(words)
    assert "failed before: RuntimeError: a bug" in run(capsys, *words)[2]
    code, _, err = run(capsys, *words, "retry_failed=true")
    assert code == 0
    assert re.search(r"continuing runs/\S+ from step [1-9]", err)


def test_typed_steps_win_over_the_epochs_of_a_recipe(capsys, tmp_path):
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "short.yaml").write_text(
        "# @package _global_\ndefaults: [digits_mlp]\ntrain: {epochs: 3}\n"
    )
    words = ["train", *SMOKE, "--config-dir", "mine", "recipe=short", "--dry-run"]
    assert any("54 steps of 64" in line for line in run(capsys, *words)[1])
    assert any("7 steps of 64" in line for line in run(capsys, *words, "train.steps=7")[1])


def test_precision_is_timed_once_for_a_folder_and_not_written_by_a_dry_run(
    capsys, tmp_path, monkeypatch
):
    asked = []

    def choose(_build):
        asked.append(1)
        return "bf16" if len(asked) == 1 else "fp32"

    monkeypatch.setattr("lsexp.launch.plan.choose_precision", choose)
    words = ["train", *SMOKE, "precision=auto"]
    assert any("bf16 on cpu" in line for line in run(capsys, *words, "--dry-run")[1])
    assert names(tmp_path) == set()
    assert run(capsys, *words)[1][-1] == run(capsys, *words)[1][-1]
    assert len(asked) == 2
    (remembered,) = (tmp_path / "runs" / ".precision").iterdir()
    for content in ("{", '{"precision": "tf32"}'):
        remembered.write_text(content)
        code, out, _ = run(capsys, *words)
        assert code == 0
        assert "tf32" not in "".join(out)
        assert json.loads(remembered.read_text())["precision"] == "fp32"


def test_a_failed_run_does_not_stop_the_others_of_a_multirun(capsys):
    code, out, err = run(capsys, "train", *SMOKE, "-m", "optim.lr=1e30,0.1")
    assert code == 1
    assert len([line for line in out if line.startswith("runs/")]) == 1
    assert "1 of 2 runs failed" in err.splitlines()[-1]


def test_a_multirun_whose_words_are_wrong_says_so_by_its_exit_code(capsys):
    code, _, err = run(capsys, "train", *SMOKE, "-m", "seed=0,1", "augment.shift=100")
    assert code == 2
    assert "2 of 2 runs failed" in err.splitlines()[-1]


def test_a_full_disk_loses_nothing(capsys, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lsexp.launch.results.replace_file", full)
        code, out, err = run(capsys, "train", *SMOKE, "artifacts.checkpoint_seconds=0")
    assert (code, out) == (1, [])
    assert "No space left on device" in err.splitlines()[-1]
    assert "goes on from the last checkpoint" in err
    assert "Traceback" not in err
    code, out, err = run(capsys, "train", *SMOKE)
    assert code == 0
    assert "continuing runs/" in err
    assert names(tmp_path / out[-1]) == FINISHED


def interrupted(capsys, monkeypatch, *words):
    """A run that has a checkpoint, stopped by a full disk at its end."""

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lsexp.launch.results.replace_file", full)
        run(capsys, "train", *SMOKE, "artifacts.checkpoint_seconds=0", *words)


def test_a_resume_keeps_to_the_threads_it_began_with(capsys, monkeypatch, tmp_path):
    interrupted(capsys, monkeypatch)
    code, out, err = run(capsys, "train", "budget=smoke", "threads=2")
    assert code == 0
    assert "keeping to threads=1" in err
    metrics = json.loads((tmp_path / out[-1] / "metrics.json").read_text())
    assert metrics["provenance"]["threads"] == metrics["config"]["threads"] == 1
    first, second = metrics["provenance"]["segments"]
    assert (first["from_step"], second["from_step"] > 0) == (0, True)
    assert (first["command"][-1], second["command"][-1]) == (
        "artifacts.checkpoint_seconds=0",
        "threads=2",
    )


@pytest.mark.parametrize(
    ("what", "other"),
    [("hardware.cpu_class", lambda: "other"), ("hardware.numba.__version__", "other")],
)
def test_a_resume_on_other_hardware_is_refused_unless_allowed(capsys, monkeypatch, what, other):
    interrupted(capsys, monkeypatch)
    monkeypatch.setattr(f"lsexp.training.{what}", other)
    code, out, err = run(capsys, "train", *SMOKE)
    assert (code, out) == (1, [])
    assert "here it is other" in err.splitlines()[-1]
    assert "resume=any" in err
    assert run(capsys, "train", *SMOKE)[0] == 1  # nothing was lost by the refusal
    code, _, err = run(capsys, "train", *SMOKE, "resume=any")
    assert code == 0
    assert "continuing" in err


HEAD = "# @package _global_\ndefaults: [digits_mlp]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}optim: {{lrr: 0.1}}", "optim.lrr: no such key; did you mean optim.lr?"),
        (f"{HEAD}optim: {{lr: abc}}", "optim.lr=abc: must be a number"),
        (f"{HEAD}model: {{dropot: 0.1}}", "model.dropot: no such key; did you mean model.dropout?"),
        (f"{HEAD}model: {{stem: small}}", "MLP networks have no stem"),
        (f"{HEAD}loss: {{teacher: x}}", "loss.teacher goes with loss=distillation"),
        (f"{HEAD}budgets: {{cpu: {{stps: 4}}}}", "budgets.cpu.stps: no such key; a budget has st"),
        ("optim: {lr: 0.1}", "the file must begin with `# @package _global_`"),
        ("", "the file must begin with `# @package _global_`"),
    ],
)
def test_what_is_wrong_in_a_recipe_of_ones_own(capsys, tmp_path, text, message):
    (tmp_path / "conf/recipe").mkdir(parents=True)
    (tmp_path / "conf/recipe/mine.yaml").write_text(text)
    code, _, err = run(capsys, "train", "--config-dir", "conf", "recipe=mine")
    assert code == 2
    assert err.startswith(f"lsexp: In 'recipe/mine': {message}")


@pytest.mark.parametrize("command", [["train"], ["sweep", "eps"]])
def test_recipes_that_name_each_other(capsys, tmp_path, command):
    (tmp_path / "conf/recipe").mkdir(parents=True)
    for name, other in (("mine", "mine"), ("one", "two"), ("two", "one")):
        text = f"# @package _global_\ndefaults: [{other}]\n"
        (tmp_path / f"conf/recipe/{name}.yaml").write_text(text)
    for name in ("mine", "one"):
        words = ["--config-dir", "conf", f"recipe={name}", "--dry-run"]
        code, _, err = run(capsys, *command, *words)
        assert code == 2
        assert err.startswith(f"lsexp: recipe={name}: its file names itself in `defaults:`")
        assert err.count("\n") == 1


def test_a_folder_of_ones_own_that_is_a_circle_of_links(capsys, tmp_path):
    (tmp_path / "conf").symlink_to("conf")
    code, _, err = run(capsys, "train", "--config-dir", "conf")
    assert (code, err) == (2, "lsexp: --config-dir conf: no such folder\n")


@pytest.mark.parametrize("name", ["my-study.d", "study.eps", "a study.eps", "eps=0"])
def test_a_folder_of_ones_own_is_told_as_it_is_typed(capsys, name):
    code, _, err = run(capsys, "sweep", "eps", "--config-dir", name)
    assert (code, err) == (2, f"lsexp: --config-dir {name}: no such folder\n")


def test_files_of_ones_own_that_cannot_be_used(capsys, tmp_path):
    folder = tmp_path / "conf/recipe"
    folder.mkdir(parents=True)
    words = ["train", "--config-dir", "conf", "--dry-run"]
    (folder / "mine.yaml").write_bytes(b"\xff")
    assert "mine.yaml: is no text in UTF-8" in run(capsys, *words, "recipe=mine")[2]
    (folder / "mine.yaml").write_text("# @package _global_\nbudgets: {tiny: {steps: 4}}\n")
    said = run(capsys, *words, "recipe=mine")[2]
    assert "recipe=mine has none; tiny: must be one of cpu, paper, smoke" in said
    (folder / "digits_mlp.yaml").write_text(HEAD)
    said = run(capsys, *words, "recipe=mine")[2]
    assert said.startswith("lsexp: recipe=digits_mlp: lsexp has one too; rename ")


def test_restart_ignores_the_checkpoint(capsys, monkeypatch):
    interrupted(capsys, monkeypatch)
    words = ["train", *SMOKE, "resume=restart"]
    begun = " of 50 is done"
    assert begun in "".join(run(capsys, "train", *SMOKE, "--dry-run")[1])
    assert begun not in "".join(run(capsys, *words, "--dry-run")[1])
    code, _, err = run(capsys, *words)
    assert code == 0
    assert "continuing" not in err


def test_a_restart_is_one_however_often_the_run_is_taken_over(capsys, monkeypatch, tmp_path):
    interrupted(capsys, monkeypatch, "resume=restart")
    plan = tiny_plan(tmp_path / "runs", "resume=restart")
    assert plan.folder.checkpoints()
    again = begin_again(plan)
    assert again.config.resume == "exact"
    assert not plan.folder.checkpoints()
    assert begin_again(again) == again


def test_a_restart_takes_nothing_from_who_trains_now(tmp_path):
    plan = tiny_plan(tmp_path, "resume=restart")
    plan.folder.create(plan.config, plan.identity, plan.chosen)
    claim = acquire(
        plan.folder.path, timeout=99, environment={}, over=lambda: False, waiting=lambda _: None
    )
    begin_again(plan)
    assert claim.held()
    assert claim.attempt.is_dir()
    claim.release()


@pytest.mark.parametrize("state", [{}, {"step": 3}, {"member": 3, "identity": {}}])
def test_a_checkpoint_that_holds_something_else_is_none(capsys, monkeypatch, tmp_path, state):
    interrupted(capsys, monkeypatch)
    (checkpoint,) = (tmp_path / "runs").glob("*/attempt-*/checkpoint.pt")
    checkpoint.write_bytes(pack(state))
    assert not any("is done" in line for line in run(capsys, "train", *SMOKE, "--dry-run")[1])
    code, _, err = run(capsys, "train", *SMOKE)
    assert code == 0
    assert "damaged" in err


def test_a_file_of_somebody_among_the_snapshots_does_no_harm(capsys, monkeypatch, tmp_path):
    words = [*SMOKE, "artifacts.snapshots=3"]
    interrupted(capsys, monkeypatch, "artifacts.snapshots=3")
    (snapshots,) = (tmp_path / "runs").glob("*/attempt-*/snapshots")
    (snapshots / "step-1 (copy).safetensors").write_text("")
    code, _, err = run(capsys, "train", *words)
    assert code == 0
    assert "continuing" in err


def test_a_damaged_checkpoint_is_ignored_and_said(capsys, monkeypatch, tmp_path):
    interrupted(capsys, monkeypatch)
    (checkpoint,) = (tmp_path / "runs").glob("*/attempt-*/checkpoint.pt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    code, _, err = run(capsys, "train", *SMOKE)
    assert code == 0
    assert "damaged" in err
    assert "continuing" not in err


# Wrong words: one line that names the key, what is allowed, and the command that helps


WRONG = {
    "trian": ["trian: no such command", "did you mean train?", "lsexp --help"],
    "train loss.epss=1": ["loss.epss=1: no such key", "did you mean loss.eps?"],
    "train eps=0.1": ["eps=0.1: no such key", "did you mean loss.eps?"],
    "train xyz": ["xyz: must be key=value"],
    "train --dry-rum": ["--dry-rum: no such flag", "did you mean --dry-run?"],
    "train +loss.eps=1": ["keys cannot be added"],
    "train ~loss": ["keys cannot be added or removed"],
    "train recipe=mnits": [
        "recipe=mnits: must be one of cifar100_resnet56, ",
        "digits_mlp, digits_shifted, mnist_distill, mnist_mlp",
    ],
    "train budget=paper": ["budget=paper: recipe=digits_mlp has smoke, cpu"],
    "train seed=abc": ["seed=abc: must be a whole number"],
    "train seed=1,2": ["several values; -m trains one run for each: lsexp train -m seed=1,2"],
    "train optim.milestones=0.1,0.2": [
        "brackets make a list: lsexp train -m optim.milestones=0.1,0.2, or optim.milestones=[0.1,",
    ],
    "train seed=-1": ["seed=-1: must be at least 0"],
    "train seed=[": ["seed=["],
    "train seed=null": ["seed=null: cannot be null"],
    "train loss.eps=1": ["loss.eps=1.0: must be at least 0 and below 1"],
    "train loss.eps=nan": ["loss.eps=nan: must be finite, at least 0 and below 1"],
    "train loss.eps=x": ["loss.eps=x: must be a number"],
    "train loss.eps=0.95 loss.spread=others": ["loss.eps=0.95", "must be below 0.9"],
    "train train=3": ["train=3: is a section"],
    "train train.steps=0": ["train.steps=0: must be at least 1"],
    "train train.steps=5 train.epochs=2": ["train.epochs: says the same as train.steps"],
    "train model.widths=3": ["model.widths=3: must be a list"],
    "train model.widths=[]": ["model.widths=[]: must name at least one"],
    "train model.widths=[0]": ["model.widths=0: must be at least 1"],
    "train data=npz": ["data=npz: needs data.path=FILE.npz"],
    "train data=npz data.path=no.npz": ["data.path=no.npz: no such file"],
    "train data.train_size=2000": ["data.train_size=2000: must be at most 1150"],
    "train augment.shift=8": ["augment.shift=8: must be below 8"],
    "train optim.nesterov=true optim.momentum=0": ["optim.nesterov=true: needs optim.momentum"],
    "train optim.schedule=step": ["optim.schedule=step: needs optim.milestones"],
    "train optim.lr_scale={hed:1}": ["optim.lr_scale=hed: matches no parameter", "fc.weight"],
    "train hydra.run.dir=litter": ["hydra.run.dir=litter: no such key"],
    "train optim.lr_scale=3": ["optim.lr_scale=3: must be a table"],
    "train model.widths=[null]": ["model.widths=[null]: "],
    "train train.epochs=1e308": ["train.epochs=1e+308: must be more than 0 and at most"],
    "train train.batch_size=1000000000000": ["train.batch_size=1000000000000: must be at least 1"],
    "train claim_timeout=0.3": ["claim_timeout=0.3: must be at least 5"],
    "train runs_dir=~nobody-of-that-name/x": ["runs_dir='~nobody-of-that-name/x'"],
    "train seed=1 seed=2": ["seed: is given twice"],
    "train --resolve": ["--resolve: goes with --cfg job"],
    "train model.widths=[[1]]": ["model.widths=[1]: must be at least 1"],
    "train optim.decay=[[a]]": ["optim.decay=['a']: must be a plain value"],
    "train threads=100000": ["threads=100000: must be at least 1 and at most 1024"],
    "train --cfg job -m seed=0,1": ["--cfg: shows one config"],
    "train -m loss.eps=0,1.5": ["loss.eps=1.5: must be at least 0 and below 1"],
    "train precision=fp16": ["precision=fp16: must be auto or fp32 or bf16"],
    "train --cfg": ["--cfg: needs a value"],
    "train --cfg all_of_it": ["--cfg all_of_it: must be job, hydra or all"],
    "train --config-dir nowhere": ["--config-dir nowhere: no such folder"],
    "train augment.crop=9": ["augment.crop=9: must be at most 8, the size of the images of digits"],
    "train optim.clip_decay=true": ["optim.clip_decay=true: goes with optim.clip_norm"],
    "train model=resnet56 model.depth=21": ["model.depth=21: must be 6n + 2, e.g. 20"],
    "train model=resnet56 model.widths=[1,2]": ["model.widths=[1, 2]: must be three"],
    "train model=resnet56 model.stem_kernel=4": ["model.stem_kernel=4: must be odd"],
    "train model=mlp model.depth=20": ["model.depth: MLP networks have no depth; model= chooses"],
    "train model.name=resnet18": ["model.name=resnet18: names are set by the network"],
    "train model=torchvision model.name=resnet19": ["torchvision has no such", "resnet18"],
    "train model=torchvision model.name=a/b": ["model.name=a/b: must be letters"],
    "train model=torchvision model.name=vit_b_16": ["model.name=vit_b_16: ", "Wrong image"],
    "train model=custom": ["model.target=: must be package.module:build"],
    "train model=custom model.target=net.py": ["model.target=net.py: must be package.module"],
    "train model=custom model.target=net:build": ["model.target=net:build: no module net"],
    "train model.args.x=1": ["model.args.x=1: goes with model=custom, not model=mlp_digits"],
    "train model=alexnet optim.decay=[fc9.weight]": ["optim.decay=fc9.weight: matches no"],
    "train data.image_size=8": ["data.image_size=8: goes with data=imagefolder, not data=digits"],
    "data digits data.image_size=8": ["data.image_size=8: goes with a folder of images"],
    "train model=resnet56 model.name=resnet20": ["model.name=resnet20: names are set"],
    "train model=custom model.args.width=1,2": ["model.args.width=1,2: several values; -m"],
    "train data=imagefolder": ["data=imagefolder: needs data.path=DIR"],
    "train runs_dir=/proc/none/runs": ["runs_dir=/proc/none/runs: No such file"],
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_get_one_line_and_exit_code_2(capsys, tmp_path, words):
    code, out, err = run(capsys, *words.split())
    assert code == (1 if "runs_dir=/proc" in words else 2)
    assert out == []
    last = err.splitlines()[-1]
    assert last.startswith("lsexp: ")
    for part in WRONG[words]:
        assert part in last, last
    assert "Traceback" not in err
    assert names(tmp_path) == set()


def test_the_installed_command_works_from_any_folder(tmp_path):
    command = Path(sys.executable).with_name("lsexp")
    done = subprocess.run(
        [command, "train", *SMOKE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == {"runs"}


def test_a_signal_that_comes_while_results_are_written_stops_a_multirun_after_that_run(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from lsexp.launch import local\n"
        "write = local.write_results\n"
        "def interrupted(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    write(*arguments)\n"
        "local.write_results = interrupted\n"
        "from lsexp.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", *SMOKE, "-m", "seed=0,1,2"]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "interrupted" in done.stderr.splitlines()[-1]
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert names(folder) == FINISHED


def test_a_run_that_is_removed_while_it_is_trained_is_told_as_such(tmp_path):
    long = [*SMOKE, "train.steps=3000000", "artifacts.checkpoint_seconds=0"]
    process = lsexp("train", *long, cwd=tmp_path, start=True)
    until_it_saves(tmp_path / "runs", process)
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    folder.rename(tmp_path / "runs" / ".removed")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith(f"{folder.name}: was removed meanwhile"), said


@pytest.mark.parametrize(
    "folder", ["a b", "it's", 'say "x"', "a,b", "[x]", "{x}", "$x", "a=b", "ü"]
)
def test_folders_of_any_name(capsys, tmp_path, folder):
    code, out, err = run(capsys, "train", *SMOKE, f"runs_dir={tmp_path / folder}")
    assert code == 0, err
    assert out[-1].startswith(str(tmp_path / folder))
    assert run(capsys, "runs", f"runs_dir={tmp_path / folder}")[0] == 0


def test_the_home_folder_is_known_by_its_sign(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(capsys, "train", *SMOKE, "runs_dir=~/mine")[1][-1].startswith(f"{tmp_path}/mine/")


README = Path(__file__).resolve().parents[1] / "README.md"


def commands(*verbs):
    """Those of the README that begin so, on lines of their own and within sentences."""
    text = README.read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    lines += [" ".join(inline.split()) for inline in re.findall(r"`(lsexp [^`]+)`", text)]
    found = [
        line.removeprefix("lsexp ").removesuffix(" --dry-run")
        for line in dict.fromkeys(lines)
        if line.startswith(tuple(f"lsexp {verb}" for verb in verbs)) and "--config-dir" not in line
    ]
    assert len(found) > 5  # else it is looked for in vain
    return found


def test_recipes_of_the_readme_are_there():
    named = re.findall(r"recipe=([a-z0-9_,]+)", README.read_text())
    for name in ",".join(named).split(","):
        assert name in [*compose.options("recipe", None), "cifar10_mine", ""], name


@pytest.mark.parametrize("line", commands("train ", "sweep ", "reproduce"))
def test_the_commands_of_the_readme_are_understood(capsys, line):
    words = line.split()
    if words[0] == "train":
        words = [word.partition(",")[0] for word in words if word != "-m"]  # the first of several
    code, _, err = run(capsys, *words, "--cfg", "job")
    assert code == 0, err


@pytest.mark.parametrize("line", commands("plot ", "report", "runs"))
def test_what_the_readme_draws_is_understood(capsys, tmp_path, monkeypatch, line):
    """Where nothing has been trained: that is said, and nothing is wrong with the words."""
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *line.split())
    assert code in (0, 1), err
    assert err == "" or re.search(r"no sweep|no such folder|No such file", err), err


def test_a_reader_that_leaves_does_not_stop_the_runs_to_come(tmp_path):
    words = " ".join([*SMOKE, "-m", "seed=0,1,2"])
    command = f"{sys.executable} -m lsexp.cli train {words} 2>/dev/null | head -n 1"
    subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path, check=True)
    assert len(list((tmp_path / "runs").glob("*/metrics.json"))) == 3


def test_a_finished_run_is_said_to_be_so(capsys):
    assert "finished before" not in run(capsys, "train", *SMOKE)[2]
    assert "finished before: not trained again" in run(capsys, "train", *SMOKE)[2]


@pytest.mark.parametrize("name", ["model.safetensors", "outputs.safetensors", "history.csv"])
def test_a_finished_run_with_a_damaged_file_is_not_shown_as_whole(capsys, tmp_path, name):
    file = tmp_path / run(capsys, "train", *SMOKE)[1][-1] / name
    content = file.read_bytes()
    for damage in (content + b"x", b"", None):
        file.unlink() if damage is None else file.write_bytes(damage)
        code, out, err = run(capsys, "train", *SMOKE)
        assert (code, out) == (1, [])
        what = "missing" if damage is None else "changed since it was published"
        assert f"{name}: {what}" in err.splitlines()[-1]
    file.write_bytes(content)
    assert run(capsys, "train", *SMOKE)[0] == 0


def test_the_work_is_done_and_its_exit_code_told_though_the_reader_has_left(tmp_path):
    def read_by(reader, *words):
        command = f"({shlex.join([sys.executable, '-m', 'lsexp.cli', *words])}; echo $? >code)"
        subprocess.run(f"{command} 2>&1 | {reader}", shell=True, cwd=tmp_path, check=True)
        return (tmp_path / "code").read_text()

    assert read_by("true", "sweep", "eps", "eps=0", "seeds=1", "workers=1", *SMOKE) == "0\n"
    assert list(tmp_path.glob("out/eps/*/eps.csv"))
    [weights] = tmp_path.glob("runs/*/model.safetensors")
    was = weights.read_bytes()
    weights.write_bytes(was[:-1] + b"?")
    assert read_by("head -n 1", "runs", "repair", "--dry-run") == "1\n"
    assert read_by("head -n 1", "runs", "repair", "--yes") == "0\n"
    assert weights.read_bytes() == was


def test_output_that_cannot_be_written_is_told(tmp_path):
    command = f"{sys.executable} -m lsexp.cli --help >/dev/full"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "lsexp: No space left on device\n"


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f"rmdir ../gone; {sys.executable} -m lsexp.cli train --dry-run"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("lsexp: the folder where this is typed has been removed")
