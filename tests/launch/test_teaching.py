"""Students of finished runs: which teacher, what it sees, what is recorded of it."""

import contextlib
import shutil

import numpy as np
import pytest
import torch
from support import change_metrics, tiny_plan, weights

from lsexp.config import AugmentConfig, DistillationConfig, TrainConfig
from lsexp.data.batches import Batches
from lsexp.errors import UserError
from lsexp.files import sha256_of
from lsexp.launch import teaching
from lsexp.launch.hands import Hands
from lsexp.launch.local import execute
from lsexp.launch.plan import describe_state
from lsexp.losses import distillation_loss
from lsexp.measure import Network, Views, measure
from lsexp.runs.catalog import read_run
from lsexp.runs.identity import digest
from lsexp.runs.store import RunFolder
from lsexp.studies import Run
from lsexp.sweep.work import Planned, left_of
from lsexp.training import teacher
from lsexp.training.checkpoint import pack
from lsexp.training.member import step

STUDENT = ["loss=distillation", "model.widths=[16]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A teacher with a snapshot at its start."""
    plan = tiny_plan(
        tmp_path_factory.mktemp("teacher"),
        "loss.eps=0.1",
        "artifacts.snapshots=2",
        "augment.flip=true",
    )
    execute(plan)
    return plan.folder.path


@pytest.fixture
def taught(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


def student(runs, *words):
    name = next(path.name for path in runs.iterdir() if "-eps" in path.name)
    return tiny_plan(runs, *STUDENT, f"loss.teacher={name}", *words)


def logits_of(folder, pixels, number=None):
    network = Network(folder, RunFolder(folder).metrics())
    with torch.no_grad():
        return network.model(number).eval()(network.preprocess(pixels))[0]


def test_a_step_is_that_of_the_teachers_probabilities(taught):
    plan = student(taught.parent, "loss.temperature=2", "loss.beta=0.7", "loss.eps=0.1")
    train = plan.images("train")
    member = plan.member(train)
    images, labels = member.batches(0)
    pixels = train.take(member.batches.draws(0).order_N)
    expected = distillation_loss(
        member.model(images)[0],
        logits_of(taught, pixels),
        labels,
        temperature=2,
        beta=0.7,
        eps_uniform=0.1,
    )
    step(member)
    assert member.losses_S[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("words", [[], ["augment.flip=true"]])
def test_what_is_looked_up_is_what_a_pass_gives(taught, words):
    plan = student(taught.parent, *words)
    train = plan.images("train")
    table = plan.member(train).teacher
    assert isinstance(table, teacher.Table)
    assert len(table.logits_VNK) == 1 + len(words)
    batches = plan.member(train).batches
    network = Network(taught, RunFolder(taught).metrics())
    passes = teacher.Network(network.model(None), network.preprocess, "fp32")
    for number in (0, 20, 40):
        draws = batches.draws(number)
        pixels = batches.pixels(draws)
        torch.testing.assert_close(
            table(pixels, draws, None), passes(pixels, draws, None), rtol=1e-4, atol=1e-4
        )


def test_around_a_crop_the_teacher_sees_the_whole_image(taught):
    plan = student(taught.parent, "augment.crop=6", "augment.flip=true", "augment.contrast=0.5")
    table = plan.member(plan.images("train")).teacher
    assert isinstance(table, teacher.Table)
    assert len(table.logits_VNK) == 2
    whole = plan.images("train").pixels_MHWC[plan.images("train").index_N[:50]]
    expected = logits_of(taught, whole.flip(2))
    torch.testing.assert_close(table.logits_VNK[1, :50], expected, rtol=1e-4, atol=1e-4)


def test_a_shifted_image_is_seen_as_the_student_sees_it(taught):
    plan = student(taught.parent, "augment.shift=1")
    member = plan.member(plan.images("train"))
    assert isinstance(member.teacher, teacher.Network)
    draws = member.batches.draws(3)
    pixels = member.batches.pixels(draws)
    expected = logits_of(taught, pixels)
    torch.testing.assert_close(member.teacher(pixels, draws, None), expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_view_is_the_teachers_own_augmentation_of_the_same_images(taught):
    plan = student(taught.parent, "loss.view=fresh")
    train = plan.images("train")
    member = plan.member(train)
    own = member.teacher.own
    assert own.augment == AugmentConfig(flip=True)  # its recipe's, which the student has not
    ours, theirs = member.batches.draws(0), own.draws(0)
    assert torch.equal(ours.order_N, theirs.order_N)
    usual = Batches(train, member.preprocess, own.augment, batch_size=64, seed=0)
    assert not torch.equal(usual.draws(0).flip_N, theirs.flip_N)
    expected = logits_of(taught, own.pixels(theirs))
    found = member.teacher(member.batches.pixels(ours), ours, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def config(view="student", **augment):
    loss = DistillationConfig(teacher="t", view=view)
    return TrainConfig(augment=AugmentConfig(**augment), loss=loss)


@pytest.mark.parametrize(
    ("student", "taught", "count"),
    [
        ({}, {}, 1),
        ({}, {"shift": 4, "flip": True}, 1),
        ({"flip": True}, {}, 2),
        ({"crop": 24, "flip": True, "contrast": 0.8}, {"shift": 4, "flip": True}, 2),
        ({"crop": 24}, {"crop": 24}, None),
        ({"brightness": 3}, {}, None),
        ({"shift": 2}, {}, None),
    ],
)
def test_how_many_ways_the_teacher_sees_an_image(student, taught, count):
    assert teaching.views(config(**student), config(**taught), (32, 32, 3)) == count
    assert teaching.views(config("fresh", **student), config(**taught), (32, 32, 3)) is None


@pytest.mark.parametrize(
    ("student", "taught"),
    [({}, {"crop": 24}), ({"crop": 24, "shift": 4}, {}), ({"crop": 20}, {"crop": 24})],
)
def test_a_view_that_does_not_fit_is_refused(student, taught):
    with pytest.raises(UserError, match=r"loss\.view=student: .* loss\.view=fresh"):
        teaching.views(config(**student), config(**taught), (32, 32, 3))


def test_it_goes_on_as_if_undisturbed(taught):
    plan = student(taught.parent, "augment.flip=true", "loss.temperature=3")
    train = plan.images("train")
    whole, first, second = (plan.member(train) for _ in range(3))
    for _ in range(15):
        step(whole)
    for _ in range(6):
        step(first)
    second.load(first.state())
    for _ in range(9):
        step(second)
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_run_tells_its_teacher_and_its_name_the_temperature(taught):
    plan = student(taught.parent, "loss.temperature=4")
    metrics = execute(plan)
    assert plan.folder.path.name.startswith("digits-mlp-T4-seed0-")
    assert metrics["teacher"] == {
        "run": taught.name,
        "step": None,
        "weights": sha256_of(taught / "model.safetensors"),
        "snapshot": None,
    }
    assert metrics["identity"]["loss.teacher"] == taught.name[-12:]
    assert metrics["config"]["loss.temperature"] == 4
    for words in (
        [f"loss.teacher={taught}"],
        [f"loss.teacher={taught.name[-12:-6]}"],
    ):
        same = tiny_plan(taught.parent, *STUDENT, *words, "loss.temperature=4")
        assert same.folder.path == plan.folder.path
        assert same.done()


def test_a_snapshot_teaches_by_its_own_weights(taught):
    plan, end = student(taught.parent, "loss.teacher_step=0"), student(taught.parent)
    assert plan.folder.path != end.folder.path
    tables = [one.member(one.images("train")).teacher.logits_VNK for one in (plan, end)]
    assert (tables[0] - tables[1]).abs().max() > 0.1
    asked = Views("holdout", 0, None, False, 0)
    np.testing.assert_array_equal(measure(taught, [asked])[asked].logits_NK, tables[0][0].numpy())
    execute(plan)
    has_none = r"loss\.teacher_step=7: digits-.* has no such snapshot; it has those of 0; "
    with pytest.raises(UserError, match=has_none):
        student(taught.parent, "loss.teacher_step=7")


def test_a_student_whose_teacher_has_changed_is_stale(taught):
    plan = student(taught.parent)
    execute(plan)
    assert read_run(plan.folder.path).status == "finished"
    change_metrics(taught, "checksums", **{"model.safetensors": "0" * 64})
    assert read_run(plan.folder.path).status == "stale"
    assert not plan.done()
    told = describe_state(plan)
    assert told.startswith("state    finished, but its teacher has been trained again since")
    assert f"`lsexp runs rm {plan.folder.path.name} runs_dir={taught.parent}`" in told
    with pytest.raises(UserError, match=r"its teacher has been trained again since .* runs rm"):
        execute(plan)
    one = Planned(Run({"role": "student", "seed": 0}, plan.config), plan, None)
    left = left_of("sweep", [one], Hands(1, 1, 1), retry=False)
    assert (left.todo, left.done) == ([], [])
    assert "its teacher has been trained again since" in left.errors[0]
    assert left.text.endswith("sweep, 1 run: 0 finished, 1 stale, 0 to do")
    whole = (taught / "metrics.json").read_text()
    for damaged in ("{", whole.replace('"model.safetensors": "0', '"model.safetensors": "1')):
        assert damaged != whole
        (taught / "metrics.json").write_text(damaged)
        assert read_run(plan.folder.path).status == "finished"  # nobody can tell
    shutil.rmtree(taught)
    assert read_run(plan.folder.path).status == "finished"


def test_the_table_is_made_by_one_thread_whatever_there_are(taught, monkeypatch):
    threads = []
    network = Network(taught, RunFolder(taught).metrics(), threads=2)
    model = network.model(None)
    monkeypatch.setattr(network, "model", lambda _: lambda x: (threads.append(_now()), model(x))[1])
    monkeypatch.setattr("lsexp.models.evaluating", lambda _: contextlib.nullcontext())
    network.views(Views("holdout", 0, None, flip=False))
    assert set(threads) == {1}
    assert _now() == 2
    torch.set_num_threads(1)


def _now():
    return torch.get_num_threads()


@pytest.mark.parametrize(
    "words",
    [
        ["loss.student_temperature=tied"],  # at temperature 1
        ["loss.spread=others"],  # of labels that do not count
        ["loss.teacher_step=50"],  # its end
    ],
)
def test_what_changes_nothing_gives_no_other_run(taught, words):
    assert student(taught.parent, *words).folder.path == student(taught.parent).folder.path


def test_a_student_that_is_resumed_under_another_teacher_begins_again(taught, capsys):
    plan = student(taught.parent, "train.steps=30")
    record = plan.taught()
    state = {
        "member": {"step": 3},
        "identity": plan.identity,
        "segments": [],
        "teacher": {**record, "weights": "0" * 64},
    }
    attempt = plan.folder.path / "attempt-0123456789abcdef"
    attempt.mkdir(parents=True)
    (attempt / "checkpoint.pt").write_bytes(pack(state))
    execute(plan)
    assert (
        "its teacher has been trained again since; the run begins again" in capsys.readouterr().err
    )
    assert plan.done()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.teacher=nobody"], r"loss\.teacher=nobody: fits none of the runs in"),
        (["loss.teacher="], r"loss\.teacher: loss=distillation needs a teacher"),
        (["loss.teacher=x", "loss.eps=0.1"], r"loss\.eps=0\.1: smooths labels, which do not count"),
        (
            ["loss.teacher=x", "loss.match=logits", "loss.temperature=2"],
            r"loss\.temperature=2: loss",
        ),
        (
            ["loss.teacher=x", "loss.match=logits", "loss.student_temperature=tied"],
            "tied: loss.mat",
        ),
        (["loss.teacher=x", "loss.t_squared=true"], r"t_squared=true: does nothing"),
        (["loss.teacher=x", "loss.beta=0"], r"loss\.beta=0.*: must be more than 0"),
        (["loss.teacher=x", "loss.temperature=-1"], r"loss\.temperature=-1.*: must be more than 0"),
    ],
)
def test_wrong_words(taught, words, message):
    with pytest.raises(UserError, match=message):
        tiny_plan(taught.parent, *STUDENT, *words)


def test_a_teacher_must_be_finished_alone_of_its_name_and_of_the_same_data(taught):
    shutil.copytree(taught, taught.with_name(taught.name + "x"))
    with pytest.raises(UserError, match=r"loss\.teacher=digits: fits 2 runs"):
        tiny_plan(taught.parent, *STUDENT, "loss.teacher=digits")
    shutil.rmtree(taught.with_name(taught.name + "x"))
    change_metrics(taught, "identity", **{"data.digest": "0"})
    own = digest(RunFolder(taught).metrics()["identity"])
    taught = taught.rename(taught.with_name(taught.name[:-12] + own))
    with pytest.raises(UserError, match="is of digits, other data than the student's digits"):
        tiny_plan(taught.parent, *STUDENT, f"loss.teacher={taught}")
    (taught / "metrics.json").unlink()
    with pytest.raises(UserError, match="is not finished; `lsexp runs show"):
        tiny_plan(taught.parent, *STUDENT, f"loss.teacher={taught}")


def test_a_name_is_of_the_folder_of_runs_and_a_path_of_the_working_folder(
    taught, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(teaching, "read_runs", None)  # which would read all that is there
    monkeypatch.chdir(trained.parent)
    assert student(taught.parent).teaching.path == taught
    words = [*STUDENT, f"loss.teacher=./{trained.name}"]
    assert tiny_plan(tmp_path / "none", *words).teaching.path.resolve() == trained


def test_a_student_can_teach(taught):
    first = student(taught.parent)
    execute(first)
    second = tiny_plan(taught.parent, *STUDENT, f"loss.teacher={first.folder.path.name}")
    execute(second)
    assert weights(second.folder.path) != weights(first.folder.path)


def test_a_planned_teacher_gives_the_students_name_before_it_is_trained(taught, tmp_path):
    plan = student(taught.parent)
    teacher_plan = tiny_plan(tmp_path / "empty", "loss.eps=0.1", "augment.flip=true")
    planned = plan.variant(plan.config.loss, 0, teaching.Teaching.planned(teacher_plan))
    assert planned.folder.path.name == plan.folder.path.name
    assert planned.identity == plan.identity


def test_the_estimate_has_a_pass_where_the_teacher_sees_every_batch(taught):
    assert teaching.seconds_of_pass(student(taught.parent)) == 0
    fresh = student(taught.parent, "loss.view=fresh")
    assert 0 < teaching.seconds_of_pass(fresh) < 1
