"""Records of sweeps, and the folders that figures go to by them."""

from dataclasses import asdict, replace

import pytest

from lsexp import studies
from lsexp.report.content import manifests
from lsexp.sweep.asked import ask
from lsexp.sweep.command import Job, _on_the_newest
from lsexp.sweep.manifest import Manifest, Part, newest_with_runs
from lsexp.sweep.naming import name_of
from lsexp.sweep.show import Output, completing


def record(study, words=(), runs=("a",), recipe="digits_mlp", budget="cpu", **keys):
    """A sweep of runs of these names, one a seed."""
    seeds = range(len(runs))
    config = studies.study(study, "").Config(eps=[0.0], seeds=[*seeds], **keys)
    named = [
        {"keys": {"eps": 0.0, "seed": seed}, "name": name}
        for seed, name in zip(seeds, runs, strict=True)
    ]
    chosen = {"recipe": recipe, "budget": budget}
    return Manifest(study, [*words], [Part([*words], asdict(config), chosen, named)])


def files(runs_dir):
    return list((runs_dir / ".sweeps").iterdir())


def test_other_views_of_the_same_runs_have_records_of_their_own(tmp_path):
    (tmp_path / "a").mkdir()
    usual, other = record("calibration"), record("calibration", ["bins=30"], bins=30)
    for one in (usual, other, usual, other):
        one.write(tmp_path)
    assert len(files(tmp_path)) == 2
    found = manifests(tmp_path, ["calibration"], [])
    assert sorted(one.words for _, one in found) == [[], ["bins=30"]]
    [(_, of_kin)] = manifests(tmp_path, ["eps"], [])  # which has no views: one sweep
    assert len(of_kin.sweeps()) == 1


def test_sweeps_of_which_no_run_is_left_are_no_part_of_a_report(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    record("eps", ["seeds=1"]).write(tmp_path)
    record("eps", ["seeds=3"], ["x", "y", "z"]).write(tmp_path)
    [(_, found)] = manifests(tmp_path, ["eps"], [])
    assert found.names() == {"a"}
    said = "left out, none of its runs is there: `lsexp sweep eps seeds=3`\n"
    assert capsys.readouterr().err == said
    (tmp_path / "y").mkdir()  # some of its runs are missing, which a report tells
    [(_, found)] = manifests(tmp_path, ["eps"], [])
    assert found.names() == {"a", "x", "y", "z"}


def test_a_plot_without_words_is_of_the_newest_sweep_that_has_a_run_left(tmp_path):
    module = studies.study("eps", "")
    assert newest_with_runs("eps", module, tmp_path) is None
    for words, names in ((["seeds=1"], ["a"]), (["seeds=2"], ["x", "y"])):
        record("eps", words, names).write(tmp_path)
    assert newest_with_runs("eps", module, tmp_path).words == ["seeds=2"]  # nothing is left
    (tmp_path / "a").mkdir()
    assert newest_with_runs("eps", module, tmp_path).words == ["seeds=1"]
    (tmp_path / "y").mkdir()
    assert newest_with_runs("eps", module, tmp_path).words == ["seeds=2"]


@pytest.mark.parametrize(
    ("word", "kept"), [("students=true", True), ("students=1", True), ("students=false", False)]
)
def test_keys_of_students_stay_where_students_are_asked_for(tmp_path, word, kept):
    of_students = "student.optim.lr=0.1"
    record("information", ["students=true", of_students], students=True).write(tmp_path)
    module = studies.study("information", "")
    words, _ = _on_the_newest("information", module, [word, f"runs_dir={tmp_path}"])
    assert (of_students in words) == kept
    assert [one for one in words if one.startswith("students=")] == [word]


def test_the_command_that_completes_a_sweep_trains_where_it_did_and_begins_nothing_again(tmp_path):
    typed = ["budget=smoke", "eps=0", "seeds=1"]
    once = ["resume=restart", "retry_failed=true"]
    launcher = ["launcher=slurm", "launcher.gpus_per_node=1"]
    output, words = Output.split([*typed, *once, *launcher, f"out_dir={tmp_path}"])
    module = studies.study("eps", "")
    job = Job("eps", module, words, ask("eps", module, words))
    manifest = job.manifest([[]], output.words)
    named = [word for word in manifest.words if not word.startswith("precision=")]
    assert named == typed
    told = completing(manifest, retry=False)
    assert told.startswith("lsexp sweep eps budget=smoke eps=0 seeds=1 ")
    assert told.endswith(f" launcher=slurm launcher.gpus_per_node=1 out_dir={tmp_path}")
    before = replace(manifest, words=[*typed, "resume=restart"], aside=[])  # as it was once written
    assert completing(before, retry=True) == f"lsexp sweep eps {' '.join(typed)} retry_failed=true"


@pytest.mark.parametrize(
    ("study", "words", "keys", "name"),
    [
        ("eps", ["eps=0,0.1", "seeds=3", "recipe=digits_mlp", "workers=2"], {}, "digits_mlp-cpu"),
        (
            "eps",
            ["train.steps=130000", "precision=bf16"],
            {},
            "digits_mlp-cpu-train.steps=130000-precision=bf16",
        ),
        (
            "information",
            ["student.train.steps=488", "students=true"],
            {"students": True},
            "digits_mlp-cpu-student.train.steps=488-students=true",
        ),
        ("calibration", ["bins=30"], {"bins": 30}, "digits_mlp-cpu-bins=30"),
        ("eps", ["launcher=slurm", "launcher.gpus_per_node=1"], {}, "digits_mlp-cpu"),
        ("eps", ["--config-dir", "conf", "launcher=mine"], {}, "digits_mlp-cpu"),
    ],
)
def test_folders_are_named_by_what_makes_others_of_them(study, words, keys, name):
    module = studies.study(study, "")
    assert name_of(module, record(study, words, **keys), ["digits_mlp"]) == name


def test_other_experiments_have_other_folders():
    experiments = [
        ["data=npz", "data.path=x/1.npz"],
        ["data=npz", "data.path=x_1.npz"],
        ["data=imagefolder", "data.path=x"],
        ["data=imagefolder", "data.path=x", "data.image_size=64"],
        ["optim.lr=1e-3"],
        ["optim.lr=1e_3"],
        ["--config-dir", "one", "recipe=mine"],
        ["--config-dir", "two", "recipe=mine"],
        ["--config-dir=/one", "recipe=mine"],
        ["--config-dir", "one", "rows=digits_mlp,mine"],
        ["--config-dir", "one", "model=mine"],
        ["--config-dir", "two", "model=mine"],
    ]
    module = studies.study("eps", "")
    named = [name_of(module, record("eps", words), ["mine"]) for words in experiments]
    named.remove(named[9])  # its recipes, which are given here, tell it from another
    assert len({*named}) == len(named)
