"""Files of others are data: whatever is planted in them, nothing of it is run, and nothing outside
the folders of the project is read as theirs, written or removed."""

import ast
import contextlib
import csv
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from support import tiny_plan

import lsexp as package
from lsexp import files
from lsexp.cli import main
from lsexp.config import DataConfig
from lsexp.data import load, sources
from lsexp.errors import UserError
from lsexp.launch.local import execute
from lsexp.measure import Measurement, measure, read_logits
from lsexp.runs.catalog import load_outputs, read_run
from lsexp.runs.store import sealed
from lsexp.training.checkpoint import unpack


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """What a planted pickle makes; checked when a test ends."""
    path = tmp_path / "it was run"
    yield path
    assert not path.exists()


@pytest.fixture
def bomb(marker):
    return pickle.dumps(Evil(marker))


def test_what_is_planted_would_work(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    yaml.load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'another'}']", yaml.UnsafeLoader)
    assert (tmp_path / "another").exists()


def refused(function, *arguments):
    """The one line with which a command refuses."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Arrays of the user.

ARRAYS = {
    "x_train": np.arange(80, dtype=np.uint8).reshape(20, 2, 2),
    "y_train": np.arange(20) % 2,
    "x_test": np.zeros((4, 2, 2), np.uint8),
    "y_test": np.arange(4) % 2,
}


def own(path):
    return load(DataConfig(name="npz", path=str(path)), str(path.parent / "data"))


@pytest.mark.parametrize("key", [*ARRAYS, "classes"])
def test_an_npz_is_not_unpickled(tmp_path, marker, bomb, key):
    path = tmp_path / "own.npz"
    objects = np.array([Evil(marker)] * len(ARRAYS.get(key, "ab")), object)
    np.savez(path, **{**ARRAYS, key: objects})
    assert f"own.npz: cannot be read as .npz ({key} holds Python objects)" in refused(own, path)
    np.savez(path, **{name: value for name, value in ARRAYS.items() if name != key})
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(f"{key}.npy", bomb)
    assert str(path) in refused(own, path)
    path.write_bytes(bomb)
    assert str(path) in refused(own, path)


def test_members_of_an_npz_stay_in_it(tmp_path):
    path = tmp_path / "in" / "own.npz"
    path.parent.mkdir()
    np.savez(path, **ARRAYS)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("../../evil.npy", path.read_bytes())
        packed.writestr(str(tmp_path / "evil.npy"), b"")
    assert own(path).num_classes == 2
    assert not list(tmp_path.rglob("*evil*"))


def test_logits_are_not_unpickled(tmp_path, marker, bomb):
    path = tmp_path / "theirs.npz"
    good = {"logits": np.eye(4) * 3 - 1, "labels": np.arange(4)}
    for name in good:
        np.savez(path, **{**good, name: np.array([Evil(marker)] * 4, object)})
        assert "theirs.npz" in refused(read_logits, path)
    np.savez(path, **good)
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("more.npy", bomb)
    read_logits(path)
    path.write_bytes(bomb)
    assert "theirs.npz" in refused(read_logits, path)


# Imported copies.


def test_an_imported_copy_is_not_unpickled(tmp_path, marker, bomb):
    path = tmp_path / "own.npz"
    np.savez(path, **ARRAYS)
    expected = own(path)
    [copy] = (tmp_path / "data" / "imported").iterdir()
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(marker)] * 20, object))
    for planted in (bomb, objects.getvalue()):
        for name in sorted(copy.iterdir()):
            name.write_bytes(planted)
            if name.suffix == ".npy":  # as if it had been written so
                meta = json.loads((copy / "meta.json").read_text())
                meta.pop("seal", None)
                meta["sha256"] = {
                    one.stem: files.sha256_of(one) for one in sorted(copy.glob("*.npy"))
                }
                (copy / "meta.json").write_text(json.dumps({**meta, "seal": files.seal(meta)}))
            found = own(path)
            np.testing.assert_array_equal(found.arrays.train_images, expected.arrays.train_images)
            assert found.digest == expected.digest


# Public sets, which their authors ship as pickles.


@pytest.fixture
def cifar(monkeypatch):
    """A small CIFAR-10 that is taken for the real one: file to content."""
    from torchvision import datasets

    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    batch = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))})
    members = {
        **dict.fromkeys(names, batch),
        "batches.meta": pickle.dumps({"label_names": "abcdefghij"}),
    }
    md5 = hashlib.md5(batch).hexdigest()
    reader = datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", [[name, md5] for name in names[:-1]])
    monkeypatch.setattr(reader, "test_list", [["test_batch", md5]])
    of_meta = hashlib.md5(members["batches.meta"]).hexdigest()
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": of_meta})
    public = sources.PUBLIC["cifar10"]._replace(digests=None, mirrors=("http://127.0.0.1:9/{}",))
    monkeypatch.setitem(sources.PUBLIC, "cifar10", public)
    return members


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_an_unpacked_batch_is_unpickled_only_if_it_is_the_authors(
    tmp_path, marker, bomb, cifar, name
):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for member, content in cifar.items():
        (folder / member).write_bytes(content)
    (folder / name).write_bytes(bomb)
    said = refused(load, DataConfig(name="cifar10"), str(tmp_path))
    assert "damaged (Dataset" in said
    assert f"remove {folder}, and it is fetched again" in said
    assert not (tmp_path / "imported").exists()
    (folder / name).write_bytes(cifar[name])
    assert load(DataConfig(name="cifar10"), str(tmp_path)).num_classes == 10


def test_an_archive_that_is_not_the_authors_is_not_unpacked(tmp_path, marker, bomb, cifar):
    data_dir = tmp_path / "a" / "data"
    data_dir.mkdir(parents=True)
    archive = data_dir / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*(f"cifar-10-batches-py/{name}" for name in cifar), "../../evil", "../evil"]:
            info = tarfile.TarInfo(name)
            info.size = len(bomb)
            tar.addfile(info, io.BytesIO(bomb))
    said = refused(load, DataConfig(name="cifar10"), str(data_dir))
    assert "is damaged, or another file (its md5 differs)" in said
    assert "data_dir=" in said
    said = refused(
        load, DataConfig(name="cifar10", url=str(archive)), str(tmp_path / "a" / "other")
    )
    assert "sent another file (its md5 differs)" in said
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("*batch*"))


def test_torchvisions_old_copies_of_mnist_are_not_unpickled(tmp_path, marker, bomb):
    for folder in ("raw", "processed"):
        (tmp_path / "MNIST" / folder).mkdir(parents=True)
    for split in ("train", "t10k"):
        for part in ("images-idx3", "labels-idx1"):
            (tmp_path / "MNIST" / "raw" / f"{split}-{part}-ubyte").write_bytes(b"")
    for name in ("training.pt", "test.pt"):
        (tmp_path / "MNIST" / "processed" / name).write_bytes(bomb)
    assert "damaged" in refused(load, DataConfig(name="mnist"), str(tmp_path))
    for name in ("training.pt", "test.pt"):
        torch.save(Evil(marker), tmp_path / "MNIST" / "processed" / name)
    assert "damaged" in refused(load, DataConfig(name="mnist"), str(tmp_path))


# Runs.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("runs"), "artifacts.snapshots=2")
    execute(plan)
    return plan.folder.path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / trained.name)


def reseal(run):
    """Make the checksums of a finished run fit what is there, as one who plants a file would."""
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    sums = metrics["checksums"]
    sums.pop("metrics.json", None)
    sums.update({name: files.sha256_of(run / name) for name in sums})
    sums["metrics.json"] = files.seal(metrics)
    path.write_text(json.dumps(metrics))


def test_a_checkpoint_is_not_unpickled(tmp_path, marker, bomb):
    saved = io.BytesIO()
    torch.save({"step": 3, "state": Evil(marker)}, saved)
    plan = tiny_plan(tmp_path / "runs")
    attempt = plan.folder.path / "attempt-0123456789abcdef"
    for content in (saved.getvalue(), bomb):
        whole = hashlib.sha256(content).digest() + content
        with pytest.raises(ValueError, match="checkpoint"):
            unpack(whole)
        attempt.mkdir(parents=True)
        (attempt / "checkpoint.pt").write_bytes(whole)
        execute(plan)  # from the start
        assert not attempt.exists()
        assert read_run(plan.folder.path).status == "finished"
        shutil.rmtree(plan.folder.path)


def test_weights_and_outputs_are_not_unpickled(run, marker, bomb):
    whole = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    assert {path.name for path in whole} == {
        "model.safetensors",
        "outputs.safetensors",
        "step-0.safetensors",
    }
    for path, content in whole.items():
        step = 0 if path.name == "step-0.safetensors" else None
        path.write_bytes(bomb)
        for seal in (False, True):  # told by its checksum first, then with one that fits
            if seal:
                reseal(run)
            assert path.name in refused(measure, run, [Measurement("val", step=step)])
            if path.name == "outputs.safetensors":
                assert path.name in refused(load_outputs, run)
        path.write_bytes(content)
        reseal(run)


def test_what_was_measured_is_not_unpickled(run, marker, bomb):
    [before] = measure(run, [Measurement("val")]).values()
    [kept] = (run / "measured").iterdir()
    kept.write_bytes(bomb)
    [after] = measure(run, [Measurement("val")]).values()
    np.testing.assert_array_equal(before.logits_NK, after.logits_NK)


def test_yaml_builds_no_objects(run, tmp_path, marker, monkeypatch, capsys):
    evil = f"!!python/object/apply:os.mkdir ['{marker}']"
    assert main(["runs", f"seed={evil}", f"runs_dir={run.parent}"]) == 2
    (run / "config.yaml").write_text(f"seed: {evil}\n")
    (run / "metrics.json").unlink()  # or nobody would look into config.yaml
    assert read_run(run).status == "damaged"
    plan = tiny_plan(run.parent, "artifacts.snapshots=2")
    assert plan.folder.path == run
    with contextlib.suppress(UserError):
        execute(plan)
    monkeypatch.chdir(tmp_path)
    for folder in ("recipe", "data"):
        (tmp_path / "own" / folder).mkdir(parents=True)
        (tmp_path / "own" / folder / "evil.yaml").write_text(f"seed: {evil}\n")
    capsys.readouterr()
    for words in (["recipe=evil", "--config-dir=own"], [f"seed={evil}"], [f"data.path={evil}"]):
        assert main(["train", "--dry-run", *words]) != 0
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_terminal_obeys_is_shown_and_not_sent(run, capsys):
    obeyed = "\x1b[31mred\x1b]0;title\x07"
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["config"]["recipe"] = obeyed
    (run / "metrics.json").write_text(json.dumps(sealed(metrics)))
    failure = {"error": obeyed, "traceback": f"Traceback\n{obeyed}"}
    (run / "failure.json").write_text(json.dumps(failure))
    shutil.copytree(run, run.with_name(f"{obeyed}-seed0-000000000000"))
    for words in ([], ["show", run.name], ["show", obeyed]):
        assert main(["runs", *words, f"runs_dir={run.parent}"]) == 0
        out, err = capsys.readouterr()
        assert "\\x1b[31mred" in out
        assert "\x1b" not in out + err


def test_names_of_runs_do_not_leave_their_folder(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(run, tmp_path / "elsewhere" / run.name)
    paths = [f"{folder}/{run.name}" for folder in ("..", "elsewhere", "runs/../elsewhere")]
    for name in (*paths, str(other), "..", ".", "/", "*", "../*"):
        for words in (["show", name], ["rm", name, "--yes"]):
            assert main(["runs", *words]) != 0, words
            assert len(capsys.readouterr().err.splitlines()) == 1
    assert other.is_dir()
    assert run.is_dir()


def test_a_link_is_removed_and_not_what_it_leads_to(run, tmp_path, capsys):
    other = shutil.move(run, tmp_path / "elsewhere")
    run.symlink_to(other)
    before = sorted(other.rglob("*"))
    assert main(["runs", "rm", run.name, "--yes", f"runs_dir={run.parent}"]) == 0
    assert not run.is_symlink()
    assert sorted(other.rglob("*")) == before
    assert main(["runs", f"runs_dir={run.parent}"]) == 0
    assert run.name not in capsys.readouterr().out.splitlines()[-2]


@pytest.mark.parametrize("name", ["publishing", "attempt-0123456789abcdef", "snapshots"])
@pytest.mark.parametrize("finished", [True, False])
def test_no_files_are_moved_or_removed_through_a_link(run, tmp_path, name, finished):
    other = tmp_path / "elsewhere"
    (other / "within").mkdir(parents=True)
    for path in ("file", "metrics.json", "within/file"):
        (other / path).write_text("of somebody")
    if not finished:
        (run / "metrics.json").unlink()
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(other)
    plan = tiny_plan(run.parent)
    assert plan.folder.path == run
    with contextlib.suppress(UserError, OSError):
        execute(plan)
    assert main(["runs", f"runs_dir={run.parent}"]) == 0
    assert main(["runs", "repair", "--yes", f"runs_dir={run.parent}"]) == 0
    for path in ("file", "metrics.json", "within/file"):
        assert (other / path).read_text() == "of somebody"
    if name != "snapshots":  # who has little room may keep these elsewhere
        assert sorted(path.name for path in run.iterdir() if path.is_symlink()) == []


@pytest.mark.parametrize("taught", ["../../elsewhere", "/", "..", "\0", "a\nb", 3, None])
def test_the_teacher_of_a_student_is_only_looked_up(run, tmp_path, capsys, taught):
    """Its name stands in a file that may be of somebody else."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "metrics.json").write_text('{"checksums": {"model.safetensors": 1}}')
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["teacher"] = {"run": taught, "step": None, "weights": "0", "snapshot": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    reseal(run)
    before = sorted(tmp_path.rglob("*"))
    assert main(["runs", "show", run.name, f"runs_dir={run.parent}"]) == 0
    assert main(["runs", "--json", f"runs_dir={run.parent}"]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_checksums_name_no_files_to_remove(run, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["checksums"]["../../victim"] = "0" * 64
    (run / "metrics.json").write_text(json.dumps(metrics))
    reseal(run)
    assert main(["runs", "rm", run.name, "--yes", f"runs_dir={run.parent}"]) == 0
    assert not run.exists()
    assert victim.read_text() == "mine"


# What is shown.

SHOWN = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))|`$x^{_$ ../..",
    '_a\nb\x1b[31m$\\frac{$"><img src=x onerror=alert(1)>',
]


class Page(HTMLParser):
    """Elements with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def test_names_of_classes_and_files_are_shown_and_nothing_else(tmp_path, monkeypatch, capfd):
    rng = np.random.RandomState(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 12)):
        labels = arrays[f"y_{split}"] = np.arange(count) % 3
        pixels = rng.randint(0, 90, (count, 4, 4)) + 80 * labels[:, None, None]
        arrays[f"x_{split}"] = pixels.astype(np.uint8)
    file = "a$x^{<b onload=alert(1)>|`[j](javascript:1).npz"
    np.savez(tmp_path / file, **arrays, classes=np.array(SHOWN))
    words = ["data=npz", f"data.path='{file}'", "data_dir=data", "budget=smoke", "model.widths=[8]"]
    words += ["precision=fp32", "artifacts.tensorboard=false", "eps=0,0.1", "seeds=1", "workers=1"]
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "projections", *words]) == 0
    said = "".join(capfd.readouterr())
    assert "Warning" not in said
    assert "\x1b" not in said
    assert {path.name for path in tmp_path.iterdir()} == {file, "data", "runs", "out"}

    [report] = (tmp_path / "out").glob("reproduce*")
    page = (report / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    elements = Page(page).elements
    assert [tag for tag, _ in elements].count("script") == 1  # ours
    assert not {"img", "b"} & {tag for tag, _ in elements}
    for _, attributes in elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:,", "https://arxiv.org/"))

    text = (report / "report.md").read_text()
    prose = re.sub(r"(`+)[^`].*?[^`]\1(?!`)", "", text)  # but for what is shown as code
    assert "javascript:1" in prose
    assert all(link.startswith(("#", "figures/")) for link in re.findall(r"(?<!\\)\]\((.*)", prose))
    assert not re.search(r"<(?!a id=|/a>)", prose)
    [figure] = (report / "figures").iterdir()
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(figure).iter()}
    assert "path" in tags
    assert not {"script", "a", "foreignObject"} & tags
    with next((tmp_path / "out").rglob("points.csv")).open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert all(None not in row and None not in row.values() for row in rows)


# The sources.

BANNED = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
STARTS = {name: ["import subprocess"] for name in ("launch/results.py", "launch/slurm.py")}
"""Where another program is started: git, for the commit, and Slurm's."""


def dangers(source):
    """What in a source could run what is in a file, or what a user typed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            bad = any(name.split(".")[0] in {*BANNED, "subprocess"} for name in names)
        elif isinstance(node, ast.ImportFrom):
            module, names = node.module or "", {alias.name for alias in node.names}
            bad = module.split(".")[0] in {*BANNED, "subprocess"}
            # Under these names what follows would not know them.
            bad |= module in ("numpy", "torch", "yaml", "os") and bool(
                names & {"load", "unsafe_load", "full_load", "system", "popen"}
            )
        else:
            bad = isinstance(node, ast.Call) and not _is_safe(node)
        if bad:
            found.append(ast.unparse(node))
    return found


def _is_safe(call):
    name = ast.unparse(call.func)
    given = {item.arg: ast.unparse(item.value) for item in call.keywords}
    if name in ("np.load", "numpy.load"):
        return given.get("allow_pickle") == "False"
    if name == "torch.load":
        return given.get("weights_only") == "True"
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader") or "".join(map(ast.unparse, call.args[1:]))
        return "SafeLoader" in loader and not re.search(r"\b(C?Unsafe|C?Full|C?)Loader\b", loader)
    return name not in CALLS and not name.endswith((".extractall", ".unpack_archive"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import subprocess",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=maybe)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "tar.extractall(path)",
    ],
)
def test_dangers_are_seen(source):
    assert dangers(source)


def test_nothing_in_the_sources_runs_what_is_in_a_file():
    top = Path(package.__file__).parent
    found = {str(path.relative_to(top)): dangers(path.read_text()) for path in top.rglob("*.py")}
    assert {name: bad for name, bad in found.items() if bad} == STARTS
