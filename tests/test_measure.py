"""Measuring finished runs: against the recorded outputs, the head's arithmetic, damage, changes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import change_metrics, tiny_plan

from lsexp import compose, measure
from lsexp.cli import main
from lsexp.config import revived, walk
from lsexp.errors import UserError
from lsexp.files import sha256_of
from lsexp.launch.local import execute
from lsexp.measure import Draws, Measurement
from lsexp.runs.catalog import load_outputs, read_run
from lsexp.runs.identity import digest
from lsexp.runs.store import RunFolder, snapshot_of
from lsexp.runs.tensors import packed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("runs"))
    execute(plan)
    return plan.folder.path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name, ignore=shutil.ignore_patterns("meas*"))


def measured(path, asked):
    return list(measure.measure(path, asked).values())


def files(run):
    return sorted((run / "measured").iterdir())


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_logits_of_a_split_are_those_recorded(run, split):
    [found] = measured(run, [Measurement(split)])
    outputs = load_outputs(run)
    np.testing.assert_allclose(found.logits_NK, outputs[f"{split}.logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels_N, outputs[f"{split}.labels"])
    np.testing.assert_array_equal(found.indices_N, outputs[f"{split}.indices"])


def test_features_and_head_give_the_logits(run):
    [found] = measured(run, [Measurement("train")])
    logits = found.features_ND @ found.weight_KD.T + found.bias_K
    np.testing.assert_allclose(found.logits_NK, logits, rtol=1e-4, atol=1e-4)
    assert (found.features_ND >= 0).all()  # behind the ReLU
    metrics = json.loads((run / "metrics.json").read_text())
    accuracy = (found.logits_NK.argmax(1) == found.labels_N).mean()
    assert accuracy == pytest.approx(metrics["train"]["accuracy"])


def test_the_first_images_of_some_classes(run):
    whole, part = measured(run, [Measurement("val"), Measurement("val", (3, 1), 5)])
    for k in (1, 3):
        of_class = whole.indices_N[whole.labels_N == k]
        np.testing.assert_array_equal(part.indices_N[part.labels_N == k], of_class[:5])
    assert sorted(set(part.labels_N.tolist())) == [1, 3]
    at = np.searchsorted(whole.indices_N, part.indices_N)
    np.testing.assert_allclose(part.features_ND, whole.features_ND[at], rtol=1e-5, atol=1e-6)


def test_what_was_measured_is_read_without_network_or_data(run, monkeypatch):
    asked = [Measurement("val"), Measurement("train", (0,), 3)]
    before = measured(run, asked)
    assert len(files(run)) == 2
    monkeypatch.setattr(measure, "Network", None)
    for one, again in zip(before, measured(run, asked), strict=True):
        for a, b in zip(one, again, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_damaged_file_is_measured_again(run, cut):
    asked = [Measurement("val", (0, 1), 4)]
    [before] = measured(run, asked)
    [file] = files(run)
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    [after] = measured(run, asked)
    np.testing.assert_array_equal(before.features_ND, after.features_ND)
    assert file.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # whole by its length, wrong in its content
    file.write_bytes(flipped)
    [after] = measured(run, asked)
    np.testing.assert_array_equal(before.features_ND, after.features_ND)


def test_changed_weights_are_refused(run):
    weights = load_file(run / "model.safetensors")
    weights["fc.bias"] += 1
    save_file(weights, run / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: changed since it was published"):
        measured(run, [Measurement("val")])


def test_weights_that_do_not_give_the_recorded_outputs_are_refused(run):
    """A checksum cannot tell that the code gives other results now."""
    weights = load_file(run / "model.safetensors")
    weights["fc.bias"][0] += 1
    save_file(weights, run / "model.safetensors")
    now = {"model.safetensors": sha256_of(run / "model.safetensors")}
    change_metrics(run, "checksums", **now)
    with pytest.raises(UserError, match="does not give the logits recorded"):
        measured(run, [Measurement("train")])


def test_other_data_are_refused(run):
    change_metrics(run, "identity", **{"data.digest": "0" * 64})
    of = digest(RunFolder(run).metrics()["identity"])
    run = run.rename(run.with_name(f"digits-mlp-eps0-seed0-{of}"))
    with pytest.raises(UserError, match="was trained on other data than digits holds now"):
        measured(run, [Measurement("val")])


def test_what_is_removed_before_it_is_looked_at_is_told(run):
    asked = Measurement("val", (0, 1), 4)
    found = measure.measure(run, [asked])
    assert (len(found), list(found)) == (1, [asked])
    [file] = files(run)
    file.unlink()
    with pytest.raises(UserError, match="was removed or changed meanwhile"):
        found[asked]


def test_a_folder_that_cannot_be_written_is_measured_all_the_same(run):
    (run / "measured").write_text("in the way")
    [found] = measured(run, [Measurement("val", (0,), 2)])
    assert len(found.labels_N) == 2


def test_a_snapshot_is_measured_by_its_own_weights(run):
    weights = load_file(run / "model.safetensors")
    (run / "snapshots").mkdir()
    path = run / "snapshots" / "step-7.safetensors"
    zeros = {name: 0 * value.numpy() for name, value in weights.items()}
    what = snapshot_of(RunFolder(run).metrics()["identity"], 7)
    path.write_bytes(packed(zeros, what))
    end, snapshot = measured(run, [Measurement("val"), Measurement("val", step=7)])
    assert not snapshot.logits_NK.any()
    assert end.logits_NK.any()
    with pytest.raises(UserError, match=r"step-8\.safetensors: the run has no such snapshot"):
        measured(run, [Measurement("val", step=8)])
    flipped = bytearray(path.read_bytes())
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"step-7\.safetensors: damaged"):
        measured(run, [Measurement("val", step=7)])
    path.with_name("step-9.safetensors").write_bytes(packed(zeros, what))
    with pytest.raises(UserError, match=r"step-9\.safetensors: damaged"):  # it is that of step 7
        measured(run, [Measurement("val", step=9)])


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """A run with augmentation and a snapshot at its start."""
    plan = tiny_plan(
        tmp_path_factory.mktemp("shifted"), "recipe=digits_shifted", "artifacts.snapshots=2"
    )
    execute(plan)
    return plan.folder.path


def test_draws_are_of_both_classes_and_differ_by_augmentation(shifted):
    [found] = measured(shifted, [Draws((3, 5), 20, 6)])
    assert found.difference_NM.shape == (40, 6)
    assert sorted(found.labels_N.tolist()) == [3] * 20 + [5] * 20
    assert len(set(found.indices_N.tolist())) == 40
    assert set(found.indices_N.tolist()) <= set(load_outputs(shifted)["train.indices"].tolist())
    assert (found.difference_NM.std(1) > 0).all()


def test_without_augmentation_every_draw_is_the_image_itself(run):
    [found, plain] = measured(run, [Draws((3, 5), 10, 3), Measurement("train", (3, 5), 10)])
    assert np.ptp(found.difference_NM, axis=1).max() < 1e-5
    expected = dict(
        zip(plain.indices_N.tolist(), plain.logits_NK[:, 3] - plain.logits_NK[:, 5], strict=True)
    )
    for index, value in zip(found.indices_N.tolist(), found.difference_NM[:, 0], strict=True):
        assert value == pytest.approx(expected[index], abs=1e-4)


def test_parts_are_disjoint_and_draws_are_the_same_for_more_of_them(shifted):
    first, second, more = measured(
        shifted, [Draws((3, 5), 20, 4), Draws((3, 5), 20, 4, part=1), Draws((3, 5), 20, 7)]
    )
    assert first.labels_N.tolist() == second.labels_N.tolist() == [3] * 20 + [5] * 20
    assert not set(first.indices_N.tolist()) & set(second.indices_N.tolist())
    np.testing.assert_array_equal(more.indices_N, first.indices_N)
    np.testing.assert_allclose(more.difference_NM[:, :4], first.difference_NM, rtol=1e-5, atol=1e-5)
    [none] = measured(shifted, [Draws((3, 5), 60, 4, part=1)])
    assert (len(none.labels_N), none.difference_NM.shape) == (0, (0, 4))


def test_draws_are_in_evaluation_mode(tmp_path):
    plan = tiny_plan(tmp_path, "model.dropout=0.5", "train.steps=2")
    execute(plan)
    [found] = measured(plan.folder.path, [Draws((3, 5), 10, 3)])
    assert np.ptp(found.difference_NM, axis=1).max() < 1e-5


def test_turning_the_pair_turns_the_sign(shifted):
    one, other = measured(shifted, [Draws((3, 5), 8, 2), Draws((5, 3), 8, 2)])
    at = [other.indices_N.tolist().index(i) for i in one.indices_N.tolist()]
    assert (one.difference_NM.mean(1) * other.difference_NM[at].mean(1) < 0).mean() > 0.9


def test_classes_with_fewer_images_give_as_many_as_both_have(shifted):
    [found] = measured(shifted, [Draws((3, 5), 10_000, 1)])
    labels = found.labels_N.tolist()
    assert labels.count(3) == labels.count(5) > 90


def test_draws_of_a_snapshot_are_of_its_weights(shifted):
    start, end = measured(shifted, [Draws((3, 5), 8, 2, step=0), Draws((3, 5), 8, 2)])
    assert np.abs(start.difference_NM - end.difference_NM).max() > 0.1


def test_a_snapshot_that_is_asked_several_questions_is_read_for_its_checksum_once(
    shifted, monkeypatch
):
    read = []
    monkeypatch.setattr(measure, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    asked = [Draws((3, 5), 8, 2, step=0), Draws((3, 5), 8, 3, step=0), Measurement("val", step=0)]
    measured(shifted, asked)
    assert [path.name for path in read].count("step-0.safetensors") == 1


def test_without_images_held_out_val_is_refused(tmp_path):
    plan = tiny_plan(tmp_path, "data.split=full", "train.steps=2")
    execute(plan)
    with pytest.raises(UserError, match=r"has no val images \(data\.split=full\)"):
        measured(plan.folder.path, [Measurement("val")])
    assert len(measured(plan.folder.path, [Measurement("train")])[0].labels_N) == 1438


@pytest.mark.parametrize(
    "words",
    [
        ["model=resnet56", "model.depth=8", "model.widths=[4,4,4]", "data.normalize=image"],
        ["model=alexnet", "augment.crop=6", "data.normalize=channel"],
        ["model=torchvision", "model.stem=small", "data.normalize=channel"],
    ],
)
def test_every_kind_of_network_is_brought_back(tmp_path, words):
    plan = tiny_plan(tmp_path, *words, "train.steps=3", "train.batch_size=16", "precision=fp32")
    execute(plan)
    [found] = measured(plan.folder.path, [Measurement("val")])  # compares with the recorded
    logits = found.features_ND @ found.weight_KD.T + found.bias_K
    np.testing.assert_allclose(found.logits_NK, logits, rtol=1e-3, atol=1e-3)


MINE = """
from torch import nn

def build(num_classes):
    head = nn.Linear(5, num_classes, bias=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), head)
"""


def test_a_network_of_ones_own_until_its_source_changes(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    plan = tiny_plan(tmp_path / "runs", "model=custom", "model.target=my_networks:build")
    execute(plan)
    run = plan.folder.path
    [found] = measured(run, [Measurement("val")])
    assert not found.bias_K.any()
    np.testing.assert_allclose(
        found.logits_NK, found.features_ND @ found.weight_KD.T, rtol=1e-3, atol=1e-3
    )
    (tmp_path / "my_networks.py").write_text(MINE.replace("Tanh", "ReLU"))
    measured(run, [Measurement("val")])  # known
    with pytest.raises(UserError, match="its source has changed since"):
        measured(run, [Measurement("test")])


def test_a_run_tells_its_classes(run):
    assert json.loads((run / "metrics.json").read_text())["classes"] == [str(k) for k in range(10)]


@pytest.mark.parametrize("recipe", compose.options("recipe", None))
def test_a_config_comes_back_from_what_metrics_hold(recipe):
    [(config, _)] = compose.train_configs([f"recipe={recipe}", "seed=3"])
    values = json.loads(json.dumps({name: value for name, _, value in walk(config)}))
    again = revived({**values, "recipe": recipe, "budget": "cpu"})
    assert type(again.model) is type(config.model)
    assert {n: v for n, _, v in walk(again)} == {n: v for n, _, v in walk(config)}


def test_a_measured_run_is_still_a_finished_run(run, capsys):
    measured(run, [Measurement("val")])
    assert RunFolder(run).finished()
    assert read_run(run).status == "finished"
    assert main(["runs", f"runs_dir={run.parent}"]) == 0
    assert "1 finished" in capsys.readouterr().out


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


LOGITS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
LABELS = np.arange(12) % 3
VAL = {"logits": LOGITS, "labels": LABELS}


def test_logits_of_others_by_either_spelling(tmp_path):
    path = write(tmp_path / "a.npz", val_logits=LOGITS, val_labels=LABELS)
    dotted = write(tmp_path / "b.npz", **{"test.logits": LOGITS, "test.labels": LABELS})
    alone = write(tmp_path / "c.npz", logits=LOGITS, labels=LABELS.astype(np.uint8))
    assert list(measure.read_logits(path)) == ["val"]
    assert list(measure.read_logits(dotted)) == ["test"]
    logits, labels = measure.read_logits(alone)["val"]
    np.testing.assert_array_equal(logits, LOGITS)
    assert labels.dtype == np.int64


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "it holds nothing"),
        ({"scores": LOGITS}, "must hold val_logits and val_labels.* it holds scores"),
        ({"val_logits": LOGITS}, "has val_logits but no val_labels"),
        (
            {f"{part}{name}": of for part in ("", "val_") for name, of in VAL.items()},
            "has both val_logits and logits",
        ),
        ({"logits": LOGITS[0], "labels": LABELS}, r"must be floating-point \[N, K\]"),
        ({"logits": LABELS[:, None], "labels": LABELS}, r"must be floating-point \[N, K\]"),
        ({"logits": LOGITS[:, :1], "labels": LABELS}, r"must be floating-point \[N, K\]"),
        ({"logits": np.where(LOGITS > 1, np.nan, LOGITS), "labels": LABELS}, "not finite"),
        ({"logits": np.eye(3)[LABELS], "labels": LABELS}, "logits: are probabilities"),
        ({"logits": LOGITS, "labels": LABELS[:-1]}, "labels: must be 12 whole numbers"),
        ({"logits": LOGITS, "labels": LABELS / 2}, "labels: must be 12 whole numbers"),
        ({"logits": LOGITS, "labels": LABELS + 1}, "must be 0 to 2, .* not 1 to 3"),
        ({"logits": LOGITS[:3], "labels": LABELS[:3]}, "3 examples are too few"),
        (
            {"val_logits": LOGITS, "val_labels": LABELS}
            | {"test_logits": LOGITS[:, :2], "test_labels": LABELS % 2},
            "different numbers of classes",
        ),
    ],
)
def test_logits_of_others_that_are_none(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        measure.read_logits(write(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "is no .npz file"),
        (b"PK\x03\x04 no zip", "is no .npz file"),
        (b"logits", "is no .npz file"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    path = tmp_path / "a.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"logits=.*a\.npz: {message}"):
        measure.read_logits(path)


def test_what_is_no_file_or_not_ours_to_read_says_so(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.npz")  # nobody writes into it
    for name in ("pipe.npz", "."):
        with pytest.raises(UserError, match="is no file"):
            measure.read_logits(tmp_path / name)
    path, opened = write(tmp_path / "a.npz", logits=LOGITS, labels=LABELS), Path.open

    def refused(self, *how):
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(self, *how)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"a\.npz: Permission denied"):
        measure.read_logits(path)
