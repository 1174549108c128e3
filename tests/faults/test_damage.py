"""Every file of a run folder missing, empty, cut or with one bit another: told, or mended; never a
traceback, never another number."""

import contextlib
import csv
import io
import json
import os
import random
import shutil

import pytest
from faults.harness import MANY, TIMES, runs, same
from support import TINY, change_metrics, tiny_plan

from lsexp import load_outputs, load_runs
from lsexp.analysis.calibration import scores
from lsexp.cli import main
from lsexp.errors import UserError
from lsexp.launch import repair
from lsexp.runs.catalog import read_run
from lsexp.runs.store import RunFolder, sealed
from lsexp.runs.tensors import unpacked
from lsexp.sweep import manifest

RUNS = [*TINY, "recipe=digits_shifted", "eps=0,0.1", "seeds=1", "train.steps=60"]
SWEEP = ["sweep", "information", *RUNS, "workers=1", "snapshots=4", "classes=3,5"]
SWEEP += ["examples=40", "draws=4", "fresh=2"]
PLOT = ["plot", "eps", *RUNS]
FILES = (
    "config.yaml",
    "history.csv",
    "metrics.json",
    "model.safetensors",
    "outputs.safetensors",
    "snapshots",
    "measured",
)
HOW = ("missing", "empty", "cut", "flipped", "folder", "pipe")
READERS = (["runs"], ["runs", "show", "NAME"], PLOT, ["plot", "curves"])


def damage(path, how, rng):
    content = bytearray(path.read_bytes())
    if how in ("missing", "folder", "pipe"):
        path.unlink()
        if how == "folder":
            path.mkdir()
            (path / "within").touch()
        elif how == "pipe":
            os.mkfifo(path)
        return
    if how == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content[: {"empty": 0, "cut": rng.randrange(1, len(content))}.get(how)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        assert main(SWEEP) == 0
        assert main(PLOT) == 0
    return cwd


def of_run(cwd, name):
    """What the table of runs says of one, without what a clock decides."""
    with next(cwd.glob("out/eps/*/runs.csv")).open() as file:
        [row] = [row for row in csv.DictReader(file) if row["run"] == name]
    return {key: value for key, value in row.items() if key not in ("seconds", "command")}


def harmless(path, was):
    """Whether a reader finds the same as before: a bit of a space, say."""
    if path.name == "metrics.json":
        try:
            return json.loads(path.read_bytes()) == json.loads(was.read_bytes())
        except ValueError:
            return False
    if path.parent.name not in ("snapshots", "measured"):
        return False
    with was.open("rb") as file:
        label = file.read(4000).partition(b'"what":"')[2].partition(b",")[0].decode()
    return unpacked(path, label) is not None


CASES = [(file, HOW[(k + j) % 6]) for k, file in enumerate(FILES) for j in range(min(TIMES, 6))]


@pytest.mark.parametrize("case", range((TIMES + 5) // 6))
@pytest.mark.parametrize(("file", "how"), CASES)
def test_damage(whole, tmp_path, monkeypatch, capsys, happened, file, how, case):
    rng = random.Random(f"{file} {how} {case}")
    cwd = shutil.copytree(whole, tmp_path / "cwd")
    monkeypatch.chdir(cwd)
    monkeypatch.setattr("sys.stdin", None)
    run, other = runs(cwd)
    before = whole / run.relative_to(cwd)
    path = run / file
    if path.is_dir():
        path = rng.choice(sorted(path.iterdir()))
    name = str(path.relative_to(run))
    damage(path, how, rng)
    happened(f"{file}: {how}")
    fine = path.is_file() and harmless(path, before / name)

    for words in READERS:
        code = main([run.name if word == "NAME" else word for word in words])
        out, err = capsys.readouterr()
        assert code == 0 or (code == 1 and err.splitlines()[-1].startswith("lsexp: ")), err
        if words is PLOT and of_run(cwd, run.name)["status"] == "damaged":
            [told] = [line for line in err.splitlines() if name in line and run.name in line]
            assert f"`lsexp runs repair {run.name}`" in told
        if words[:2] == ["runs", "show"] and "status: damaged" in out:
            assert f"`lsexp runs repair {run.name}`" in out
    row, true = of_run(cwd, run.name), of_run(whole, run.name)
    if row["status"] == "finished":
        assert row == true
    assert of_run(cwd, other.name) == of_run(whole, other.name)
    table = load_runs(str(cwd / "runs")).set_index("name")
    if table.status[run.name] == "finished":
        assert table["test.accuracy"][run.name] == float(true["test_accuracy"])
    with contextlib.suppress(UserError):
        for key, value in load_outputs(run).items():
            assert (value == load_outputs(before)[key]).all()

    code = main(["runs", "repair", "--dry-run"])
    out = capsys.readouterr().out
    assert code == (0 if fine or (file == "measured" and how == "missing") else 1)
    if code == 0:
        return
    assert f"{run.name}  {name}  " in " ".join(out.split()).replace(" ", "  ")
    assert main(["runs", "repair", "--yes"]) == 0, capsys.readouterr().err
    same_but_measured(run, before)
    if file not in ("model.safetensors", "snapshots", "measured"):
        return  # what is measured was not hurt
    assert main(["plot", "information"]) == 0
    assert main(PLOT) == 0
    assert of_run(cwd, run.name)["test_nll"] == true["test_nll"]
    for table in whole.glob("out/information/*/information.csv"):
        assert (cwd / table.relative_to(whole)).read_bytes() == table.read_bytes()
    same(run, before)


def test_a_folder_under_the_name_of_another_run_is_told_and_not_mended(
    whole, tmp_path, monkeypatch, capsys
):
    cwd = shutil.copytree(whole, tmp_path / "cwd")
    monkeypatch.chdir(cwd)
    run, other = runs(cwd)
    shutil.rmtree(run)
    shutil.copytree(other, run)
    assert main(PLOT) == 0
    assert f"{run.name}/metrics.json: of another run" in capsys.readouterr().err
    assert main(["runs", "repair", "--yes"]) == 1
    out, err = capsys.readouterr()
    assert "a copy of" in out
    assert f"lsexp runs rm {run.name}" in err


def test_a_sweep_trains_again_what_has_lost_its_metrics(whole, tmp_path, monkeypatch):
    cwd = shutil.copytree(whole, tmp_path / "cwd")
    monkeypatch.chdir(cwd)
    for run in runs(cwd):
        (run / "metrics.json").unlink()
    assert main(SWEEP) == 0
    for run in runs(cwd):
        same(run, whole / run.relative_to(cwd))


def test_a_snapshot_that_was_asked_for_later_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", *TINY, "train.steps=60"]
    assert main(train) == 0
    assert main([*train, "artifacts.snapshots=5"]) == 0
    [run] = runs(tmp_path)
    path = sorted((run / "snapshots").iterdir())[1]
    was = path.read_bytes()
    damage(path, "cut", random.Random(0))
    assert main(["runs", "repair", "--yes"]) == 0
    assert path.read_bytes() == was


RECORDS = ["flipped", *(pytest.param(how, marks=MANY) for how in HOW if how != "flipped")]


@pytest.mark.parametrize("case", range(TIMES))
@pytest.mark.parametrize("how", RECORDS)
def test_a_damaged_record_of_a_sweep_is_never_believed(
    whole, tmp_path, monkeypatch, capsys, happened, how, case
):
    """It says which run has which eps and seed."""
    cwd = shutil.copytree(whole, tmp_path / "cwd")
    shutil.rmtree(cwd / "out")
    monkeypatch.chdir(cwd)
    manifest._tell.cache_clear()  # said in this process of a folder of this name
    [record] = cwd.glob("runs/.sweeps/*.json")
    was = json.loads(record.read_text())
    damage(record, how, random.Random(f"{how} {case}"))
    same_words = how == "flipped" and harmless_json(record, was)
    happened(f".sweeps: {how}")
    code = main(["plot", "information"])
    err = capsys.readouterr().err
    if same_words:
        assert code == 0
    else:
        assert code == 1
        assert how == "missing" or f"{record.name}: damaged" in err
        assert err.splitlines()[-1].startswith("lsexp: plot information: no sweep for it")
        assert main(SWEEP) == 0
        assert main(["plot", "information"]) == 0
    tables = [next(at.glob("out/information/*/information.csv")) for at in (cwd, whole)]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def harmless_json(path, was):
    try:
        return json.loads(path.read_bytes()) == was
    except ValueError:
        return False


def same_but_measured(run, before):
    again = shutil.copytree(before, run.parent.with_name("before") / before.name)
    shutil.rmtree(again / "measured")
    same(run, again)
    shutil.rmtree(again.parent)


def _without_outputs(tmp_path, monkeypatch, changed=lambda metrics: metrics):
    """A finished run without its outputs, and what its files were; also where metrics.json tells of
    outputs that other hardware made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)  # nobody to ask, and no reason to
    assert main(["train", *TINY, "train.steps=60"]) == 0
    [run] = runs(tmp_path)
    metrics = changed(json.loads((run / "metrics.json").read_text()))
    (run / "metrics.json").write_text(json.dumps(sealed(metrics), indent=1))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / "outputs.safetensors").unlink()
    return run, before


def test_outputs_come_back_from_the_weights_without_training(tmp_path, monkeypatch):
    run, before = _without_outputs(tmp_path, monkeypatch)
    assert main(["runs", "repair"]) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("at_the_end", [False, True])
def test_outputs_of_other_hardware_are_replaced_and_told(tmp_path, monkeypatch, at_the_end):
    """Those of the best val epoch too, where that is the last one."""

    def elsewhere(metrics):
        moved = {**metrics["test"], "nll": metrics["test"]["nll"] * (1 + 1e-6)}
        best = {**metrics["best_val"], "step": 60 if at_the_end else 23, "test": moved}
        checksums = {**metrics["checksums"], "outputs.safetensors": "0" * 64}
        return {**metrics, "test": moved, "best_val": best, "checksums": checksums}

    run, before = _without_outputs(tmp_path, monkeypatch, elsewhere)
    assert main(["runs", "repair"]) == 0
    metrics = RunFolder(run).verified_metrics()
    was = json.loads(before.pop("metrics.json"))
    outputs = load_outputs(run)
    true = scores(outputs["test.logits"], outputs["test.labels"])
    assert metrics["test"] == true != was["test"]
    assert metrics["best_val"]["test"] == (true if at_the_end else was["best_val"]["test"])
    assert metrics["best_val"]["step"] == was["best_val"]["step"]
    assert metrics["provenance"].pop("evaluated_again")["device"] == "cpu"
    assert metrics["provenance"] == was["provenance"]
    assert {name: (run / name).read_bytes() for name in before} == before


def test_weights_that_do_not_have_the_recorded_scores_are_told(tmp_path, monkeypatch, capsys):
    def other(metrics):
        wrong = {**metrics["test"], "nll": metrics["test"]["nll"] + 0.01}
        return {**metrics, "test": wrong}

    run, before = _without_outputs(tmp_path, monkeypatch, other)
    assert main(["runs", "repair"]) == 1
    assert "its weights give a test nll of" in capsys.readouterr().err
    del before["outputs.safetensors"]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_record_of_a_failure_that_cannot_be_read_is_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    folder = tiny_plan(tmp_path).folder
    folder.create(tiny_plan(tmp_path).config, tiny_plan(tmp_path).identity, {})
    assert main(["runs", "repair", f"runs_dir={tmp_path}"]) == 0
    (folder.path / "failure.json").write_text('{"error": "no')
    assert read_run(folder.path).status == "damaged"
    assert main(["runs", "repair", f"runs_dir={tmp_path}", "--dry-run"]) == 1
    assert "failure.json  damaged  removed; the command that" in capsys.readouterr().out
    assert main(["runs", "repair", f"runs_dir={tmp_path}"]) == 0
    assert read_run(folder.path).status == "interrupted"


def test_a_repair_can_be_told_how_a_run_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", *TINY, "train.steps=60"]) == 0
    [run] = runs(tmp_path)
    was = (run / "model.safetensors").read_bytes()
    change_metrics(run, "config", device="cuda")
    (run / "model.safetensors").write_bytes(was[:-1])
    words = ["runs", "repair", "--yes"]
    assert main(words) == 1
    assert "device=cpu works everywhere" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == was[:-1]
    assert main([*words, "device=gpu"]) == 2
    assert main([*words, "device=cpu", "resume=any", "threads=1", "data_dir=data"]) == 0
    assert (run / "model.safetensors").read_bytes() == was
    assert load_runs()["data_dir"][0] == "data"


def test_outputs_come_back_by_data_that_are_elsewhere_now(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(repair, "evaluate_again", lambda *of: asked.append(of))
    run, _ = _without_outputs(tmp_path, monkeypatch)
    assert main(["runs", "repair", "data_dir=data"]) == 0
    assert asked == [(run.relative_to(tmp_path), "data")]


def test_a_repair_that_trains_asks_and_one_of_no_run_says_so(tmp_path, monkeypatch, capsys):
    run, _ = _without_outputs(tmp_path, monkeypatch)
    (run / "history.csv").write_text("")
    for stdin in (None, io.StringIO()):
        monkeypatch.setattr("sys.stdin", stdin)
        capsys.readouterr()
        assert main(["runs", "repair"]) == 2
        out, err = capsys.readouterr()
        assert "made again" in out
        assert err.startswith("lsexp: train 1 run again? nobody can answer here; --yes does it")
    assert (run / "history.csv").read_text() == ""
    assert main(["runs", "repair", "seed=7"]) == 0
    assert capsys.readouterr().out == "no run fits; nothing was looked into\n"
