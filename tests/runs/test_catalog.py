import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import TINY

import lsexp
from lsexp import processes
from lsexp.cli import main
from lsexp.errors import UserError
from lsexp.runs import claims, command, store
from lsexp.runs.catalog import Entry, read_run, read_runs, select
from lsexp.runs.identity import digest
from lsexp.runs.store import aside_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs over eps and seed, and one that failed."""
    runs = tmp_path_factory.mktemp("trained")
    words = [*TINY, f"runs_dir={runs}", "-m", "loss.eps=0,0.1", "seed=0,1"]
    assert main(["train", *words]) == 0
    assert main(["train", *TINY, f"runs_dir={runs}", "optim.lr=1e30"]) == 1
    return runs


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def run(capsys, *words):
    code = main(["runs", *words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def seeds_and_eps(entries):
    return [(entry.config["loss.eps"], entry.config["seed"]) for entry in entries]


def test_all_runs_are_listed_in_order_with_their_status(capsys, runs):
    code, out, _ = run(capsys, f"runs_dir={runs}")
    assert code == 0
    assert [line.split()[0].rpartition("-")[0] for line in out[1:6]] == [
        "digits-mlp-eps0-seed0",
        "digits-mlp-eps0-seed0",
        "digits-mlp-eps0-seed1",
        "digits-mlp-eps0.1-seed0",
        "digits-mlp-eps0.1-seed1",
    ]
    assert sorted(line.split()[1] for line in out[1:6]) == ["failed"] + ["finished"] * 4
    assert out[-1].startswith("5 runs (4 finished, 1 failed), ")


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("loss.eps=0.10", 2),
        ("loss.eps=0,0.1", 5),
        ("loss.eps=1e-1 seed=1", 1),
        ("status=failed", 1),
        ("status=finished recipe=digits_mlp budget=smoke", 4),
        ("data=digits model=mlp", 5),
        ("data=mnist", 0),
        ("seed=0 digits-mlp-eps0.1", 1),
        ("optim.nesterov=true", 5),
        ("optim.nesterov=1", 5),
        ("optim.nesterov=false,0", 0),
        ("data.path=null", 5),
        ("model.widths=[128,128]", 5),
    ],
)
def test_filters_by_config_values(runs, where, count):
    assert len(lsexp.load_runs(runs, where)) == count


def test_data_of_ones_own_are_named_by_their_file():
    mine = Entry(Path("mine-mlp-eps0-seed0-0123456789ab"), "finished")
    other = Entry(Path("mine2-mlp-eps0-seed0-0123456789ab"), "finished")
    for entry in (mine, other):
        entry.config = {"data.name": "npz"}
    assert select([mine, other], ["data=mine"]) == [mine]
    assert select([mine, other], ["data=npz"]) == [mine, other]


def test_json_is_for_programs(capsys, runs):
    code, out, _ = run(capsys, f"runs_dir={runs}", "--json", "status=finished")
    found = json.loads("\n".join(out))
    assert (code, len(found)) == (0, 4)
    assert found[0]["metrics"]["test"]["accuracy"] > 0.5
    assert found[0]["config"]["loss.eps"] == 0.0
    assert Path(found[0]["path"]).is_dir()
    code, out, _ = run(capsys, f"runs_dir={runs}", "--json", "data=mnist")
    assert (code, json.loads("\n".join(out))) == (0, [])


def test_the_table_and_the_arrays_in_python(runs):
    table = lsexp.load_runs(str(runs), "status=finished")
    assert {"name", "path", "status", "loss.eps", "seed", "test.accuracy", "val.ece"} <= set(table)
    means = table.groupby("loss.eps")["test.ece"].mean()
    assert means[0.1] > means[0.0]  # 50 steps of smoothing: underconfident
    outputs = lsexp.load_outputs(table.path[0])
    right = (outputs["test.logits"].argmax(1) == outputs["test.labels"]).mean()
    assert right == pytest.approx(table["test.accuracy"][0])
    assert outputs["test.logits"].dtype == np.float32
    with pytest.raises(UserError, match="only a finished run has outputs"):
        lsexp.load_outputs(runs)


@pytest.mark.parametrize("where", ["status=finished data=mnist", "loss.eps=0.5"])
def test_a_table_without_runs_has_the_columns_of_one(runs, where):
    columns = set(lsexp.load_runs(str(runs), "status=finished"))
    none = lsexp.load_runs(str(runs), where)
    assert len(none) == 0
    others = ("targets.", "classes", "checksums.", "provenance.")
    assert set(none) == {name for name in columns if not name.startswith(others)}
    assert len(none.groupby("loss.eps")["test.ece"].agg(["mean", "count"])) == 0


def test_a_table_of_a_folder_that_is_not_there_is_refused(runs):
    with pytest.raises(UserError, match="no such folder"):
        lsexp.load_runs(str(runs / "none"))


def test_show_tells_everything_known(capsys, runs):
    name = next(path.name for path in runs.iterdir() if "eps0.1-seed1" in path.name)
    for prefix in (name, name[:-6], name[-12:-4], f"{runs}/{name}"):
        code, out, err = run(capsys, "show", prefix, f"runs_dir={runs}")
        assert code == 0, err
        text = "\n".join(out)
        for word in (
            "status: finished",
            "loss.eps",
            "provenance.git.commit",
            "checksums",
            "test.accuracy",
            "targets.logit_gap",
            "model.safetensors",
        ):
            assert word in text, word
    assert json.loads("\n".join(run(capsys, "show", name, f"runs_dir={runs}", "--json")[1]))


def test_show_leaves_out_files_that_vanish_meanwhile(capsys, runs, monkeypatch):
    folder = next(runs.iterdir())
    found = [(str(folder), [], ["config.yaml", "gone"])]
    monkeypatch.setattr(command.os, "walk", lambda _: found)
    code, out, _ = run(capsys, "show", folder.name, f"runs_dir={runs}")
    files = [line.split()[0] for line in out[out.index("files") + 1 :]]
    assert (code, files[0]) == (0, "config.yaml")
    assert "gone" not in files


def test_show_of_a_failed_run_has_its_traceback(capsys, runs):
    failed = next(path.parent.name for path in runs.glob("*/failure.json"))
    _, out, _ = run(capsys, "show", failed, f"runs_dir={runs}")
    assert any("retry_failed=true" in line for line in out)
    assert any(line.startswith("Traceback") for line in out)


def test_rm_needs_an_answer_and_removes_what_was_shown(capsys, runs, monkeypatch):
    before = sorted(runs.iterdir())
    code, _, err = run(capsys, "rm", "status=failed", f"runs_dir={runs}")
    assert code == 2
    assert "--yes" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    code, out, _ = run(capsys, "rm", "status=failed", f"runs_dir={runs}")
    assert (code, out[-1]) == (1, "nothing was removed")
    assert sorted(runs.iterdir()) == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    code, out, _ = run(capsys, "rm", "status=failed", f"runs_dir={runs}")
    assert (code, out[-1]) == (0, "removed 1 run")
    assert len(list(runs.iterdir())) == 4
    code, out, _ = run(capsys, "rm", "loss.eps=0.1", "seed=1", "--yes", f"runs_dir={runs}")
    assert code == 0
    assert seeds_and_eps(read_runs(str(runs))) == [(0.0, 0), (0.0, 1), (0.1, 0)]


def test_rm_reads_the_folder_once(capsys, runs, monkeypatch):
    read, names = [], [path.name for path in runs.iterdir() if "eps0.1" in path.name]

    def counted(path):
        read.append(path)
        return read_run(path)

    monkeypatch.setattr("lsexp.runs.catalog.read_run", counted)
    code, out, _ = run(capsys, "rm", *names, "--yes", f"runs_dir={runs}")
    assert (code, out[-1]) == (0, "removed 2 runs")
    assert len(read) == 5


def test_rm_takes_what_is_trained_aside_too(capsys, runs):
    folder = next(path for path in runs.iterdir() if "eps0.1-seed1" in path.name)
    aside = shutil.copytree(folder, aside_of(folder, 4))
    (aside / "metrics.json").unlink()
    code, out, _ = run(capsys, f"runs_dir={runs}")
    assert code == 0
    assert f"for snapshots: {folder.name} (interrupted)" in out[-1]
    _, out, _ = run(capsys, "--json", f"runs_dir={runs}")
    told = {item["name"]: item["aside"] for item in json.loads("\n".join(out))}
    assert told.pop(folder.name) == [{"path": str(aside), "status": "interrupted"}]
    assert not any(told.values())
    code, _, _ = run(capsys, "rm", folder.name, "--yes", f"runs_dir={runs}")
    assert code == 0
    assert not aside.exists()
    assert not folder.exists()


def test_a_run_in_training_is_shown_and_not_removed(capsys, runs):
    folder = next(path for path in runs.iterdir() if "eps0.1-seed1" in path.name)
    (folder / "metrics.json").unlink()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = {
            **claims._new_record({}),
            "pid": sleeper.pid,
            "process_start": processes._start(sleeper.pid),
        }
        (folder / "claim.json").write_text(json.dumps(record))
        (folder / f"attempt-{record['nonce']}").mkdir()
        (folder / f"attempt-{record['nonce']}" / "beat").write_text("1")
        code, out, _ = run(capsys, "status=running", f"runs_dir={runs}")
        assert len(out) == 3
        code, out, err = run(capsys, "rm", "seed=1", "--yes", f"runs_dir={runs}")
        assert code == 1
        assert f"is being trained by process {sleeper.pid}" in err
        assert folder.exists()
        os.utime(folder / f"attempt-{record['nonce']}" / "beat", (1, 1))  # put to sleep
        assert [entry.status for entry in read_runs(str(runs), [folder.name])] == ["running"]
    finally:
        sleeper.kill()
        sleeper.wait()
    assert [entry.status for entry in read_runs(str(runs), [folder.name])] == ["interrupted"]


def test_runs_of_an_older_version_are_stale(runs, monkeypatch):
    monkeypatch.setattr("lsexp.runs.catalog.RESULT_VERSION", 10**6)
    assert {entry.status for entry in read_runs(str(runs))} == {"stale"}


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "\udcff", '{"config": 3}'])
def test_a_damaged_folder_is_listed_as_such_and_hides_no_other(capsys, runs, name, content):
    folder = next(path for path in runs.iterdir() if "eps0.1-seed1" in path.name)
    if name == "config.yaml":
        (folder / "metrics.json").unlink()
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    code, out, _ = run(capsys, f"runs_dir={runs}")
    assert code == 0
    assert sum("damaged" in line for line in out[1:-1]) == 1
    assert "1 damaged" in out[-1]
    if name == "metrics.json":
        found = read_runs(str(runs), ["loss.eps=0.1", "seed=1"])
        assert [(entry.name, entry.status) for entry in found] == [(folder.name, "damaged")]
    assert run(capsys, "show", folder.name, f"runs_dir={runs}")[0] == 0


def test_a_value_that_is_no_number_hides_nothing(capsys, runs):
    folder = next(path for path in runs.iterdir() if "eps0.1-seed1" in path.name)
    (folder / "metrics.json").unlink()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("\nseed: 1", "\nseed: [1]"))
    code, out, _ = run(capsys, f"runs_dir={runs}")
    assert code == 0
    assert out[-1].startswith("5 runs")


def test_what_is_no_run_is_passed_over(capsys, runs):
    (runs / "notes").mkdir()
    (runs / "notes.txt").write_text("")
    assert run(capsys, f"runs_dir={runs}")[1][-1].startswith("5 runs")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["lss.eps=0"], ["lss.eps=0: no such key to select by", "did you mean loss.eps?"]),
        (["zzz"], ["zzz: no run begins so", "lsexp runs"]),
        (["show"], ["needs the beginning of a run's name"]),
        (["show", "digits"], ["digits: fits 5 runs", "show takes one"]),
        (["rm"], ["needs names or key=value"]),
        (["rm", "", "--yes"], ["'': an empty name"]),
        (["rm", "/", "--yes"], ["'/': an empty name"]),
        (["rm", "digits", "--yes"], ["digits: fits 5 runs", "rm takes names that fit one"]),
        (["rm", "/elsewhere/digits", "--yes"], ["is not in", "runs_dir=/elsewhere"]),
        (["status=fail"], ["status=fail: must be one of finished, stale"]),
        (["seed=0..1"], ["seed=0..1: must be a number, or several, e.g. seed=0,1"]),
        (["rm", "loss.eps=0,False", "--yes"], ["loss.eps=False: must be a number"]),
        (["--jsn"], ["no such flag of list", "--json"]),
        (["show", "--yes"], ["no such flag of show"]),
    ],
)
def test_wrong_words(capsys, runs, words, parts):
    code, out, err = run(capsys, *words, f"runs_dir={runs}")
    assert code in (1, 2)
    assert out == []
    assert len(err.splitlines()) == 1
    for part in parts:
        assert part in err
    assert len(read_runs(str(runs))) == 5


def test_no_folder_of_runs(capsys, tmp_path):
    code, _, err = run(capsys, f"runs_dir={tmp_path / 'none'}")
    assert code == 1
    assert "no such folder" in err


def test_a_thousand_runs_are_listed_quickly(runs, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    sources = [path for path in sorted(runs.iterdir()) if (path / "metrics.json").exists()]
    for number in range(1000):
        source = sources[number % 4]
        metrics = json.loads((source / "metrics.json").read_text())
        metrics["identity"]["seed"] = number
        target = many / f"{source.name[:-12]}{digest(metrics['identity'])}"
        target.mkdir()
        for file in source.iterdir():
            if file.name != "metrics.json":
                os.link(file, target / file.name)
        (target / "metrics.json").write_text(json.dumps(store.sealed(metrics)))
    for _ in range(3):  # once is enough; the machine may be busy
        start = time.perf_counter()
        command = [sys.executable, "-m", "lsexp.cli", "runs", f"runs_dir={many}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        if seconds < 1.5:
            break
    assert done.stdout.splitlines()[-1].startswith("1000 runs (1000 finished)")
    assert seconds < 1.5


@pytest.mark.parametrize("word", ["recipe=!!timestamp x", f"recipe={'[' * 2000}", "recipe=!!int x"])
def test_what_yaml_cannot_read_selects_nothing(capsys, runs, word):
    code, out, _ = run(capsys, word, f"runs_dir={runs}")
    assert (code, out[-1]) == (0, f"0 runs, 0 B, in {runs}")


def test_metrics_that_nest_too_deeply_are_damage(capsys, runs):
    path = next(runs.glob("*/metrics.json"))
    path.write_text("[" * 200_000)
    code, out, _ = run(capsys, "status=damaged", f"runs_dir={runs}")
    assert code == 0
    assert out[1].startswith(path.parent.name)


def closed(monkeypatch, part):
    """Nobody lets us look into folders with `part` in their names; a test may be run by root."""
    exists, access, open_, stat = os.path.exists, os.access, os.open, Path.stat

    def refuse(call):
        def refused(path, *arguments, **keywords):
            if part in str(path).rpartition("/")[0]:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **keywords)

        return refused

    monkeypatch.setattr(Path, "stat", refuse(stat))
    monkeypatch.setattr(os, "open", refuse(open_))
    monkeypatch.setattr(os.path, "exists", lambda at: part not in str(at) and exists(at))
    monkeypatch.setattr(os, "access", lambda at, how: part not in str(at) and access(at, how))


def test_a_folder_that_nobody_lets_us_look_into_is_a_run_by_its_name(capsys, runs, monkeypatch):
    (runs / "somebody-elses").mkdir()
    folder = next(runs.glob("*eps0.1-seed1-*"))
    with monkeypatch.context() as patch:
        closed(patch, "somebody-elses")
        assert len(read_runs(str(runs))) == 5
    closed(monkeypatch, folder.name)
    assert [one.status for one in read_runs(str(runs)) if one.name == folder.name] == ["damaged"]
    code, out, err = run(capsys, "repair", "--yes", f"runs_dir={runs}")
    assert code == 1
    assert "closed to you" in out[1]
    assert f"chmod u+rwx {folder}" in err


def test_a_link_that_calls_a_run_otherwise_is_no_second_run(runs):
    folder = next(runs.glob("*eps0.1-seed1-*"))
    (runs / "latest").symlink_to(folder)
    assert len(read_runs(str(runs))) == 5
    elsewhere = runs.parent / "elsewhere"
    elsewhere.mkdir()
    folder.rename(elsewhere / "big")  # moved to another disk
    folder.symlink_to(elsewhere / "big")
    assert [one.status for one in read_runs(str(runs), [folder.name])] == ["finished"]


@pytest.mark.parametrize("before", ["best", "backup-{}"])
def test_a_copy_is_no_second_run_and_one_that_was_renamed_gets_its_name_back(capsys, runs, before):
    folder = next(runs.glob("*eps0.1-seed1-*"))
    copy = runs / before.format(folder.name)
    shutil.copytree(folder, copy)
    assert [one.status for one in read_runs(str(runs), [copy.name])] == ["damaged"]
    table = lsexp.load_runs(str(runs), "status=finished")
    assert copy.name not in set(table.name)
    code, out, err = run(capsys, "repair", "--yes", f"runs_dir={runs}")
    assert code == 1
    assert f"a copy of {folder.name}" in "".join(out)
    assert f"lsexp runs rm {copy.name} runs_dir={runs}" in err
    shutil.rmtree(folder)
    (copy / "outputs.safetensors").unlink()  # which is mended with it
    code, out, _ = run(capsys, "repair", "--yes", f"runs_dir={runs}")
    assert (code, out[-1]) == (0, "mended 1 run")
    assert not copy.exists()
    assert run(capsys, "repair", f"runs_dir={runs}")[0] == 0
    assert read_run(folder).status == "finished"


def test_a_finished_run_under_another_name_is_worth_more_than_one_begun_under_its_own(capsys, runs):
    folder = next(runs.glob("*eps0.1-seed1-*"))
    folder.rename(runs / "mine")
    folder.mkdir()
    shutil.copy(runs / "mine/config.yaml", folder)
    code, _, err = run(capsys, "repair", "--yes", f"runs_dir={runs}")
    assert code == 1
    assert f"mine: is {folder.name} under another name, and a folder of that name is not" in err
    assert f"lsexp runs rm {folder.name} runs_dir={runs}" in err
    assert run(capsys, "rm", folder.name, "--yes", f"runs_dir={runs}")[0] == 0
    assert run(capsys, "repair", "--yes", f"runs_dir={runs}")[0] == 0
    assert read_run(folder).status == "finished"


def test_an_unfinished_run_under_another_name_is_told(capsys, runs):
    folder = next(runs.glob("*eps0.1-seed1-*"))
    (runs / "mine").mkdir()
    (folder / "config.yaml").rename(runs / "mine/config.yaml")
    shutil.rmtree(folder)
    code, out, _ = run(capsys, "repair", "--dry-run", f"runs_dir={runs}")
    assert code == 1
    assert f"of another run ({folder.name[-12:]}), and not finished" in out[1]


def test_metrics_that_cannot_be_read_are_damage_by_name(runs, monkeypatch):
    path = next(runs.glob("*/metrics.json"))
    text_of = store.text_of

    def refused(asked):
        if asked == path:
            raise PermissionError(13, "Permission denied", str(path))
        return text_of(asked)

    monkeypatch.setattr(store, "text_of", refused)
    with pytest.raises(store.Damaged, match=f"{path}: permission denied"):
        store.RunFolder(path.parent).metrics()
