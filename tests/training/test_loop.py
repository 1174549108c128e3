"""The loop: rows of the history, best val, checkpoints, divergence; looking changes nothing."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lsexp.compose import train_configs
from lsexp.config import (
    AugmentConfig,
    LossConfig,
    MLPConfig,
    OptimConfig,
    StepsConfig,
    TrainConfig,
)
from lsexp.data.batches import Images
from lsexp.launch.local import execute
from lsexp.launch.plan import plan
from lsexp.training import loop
from lsexp.training.checkpoint import pack, unpack
from lsexp.training.evaluate import accuracy_and_nll, logits_of
from lsexp.training.loop import Diverged, Progress, train
from lsexp.training.member import Member, step

CONFIG = TrainConfig(
    augment=AugmentConfig(shift=1),
    model=MLPConfig(widths=[8, 8], dropout=0.3),
    loss=LossConfig(eps=0.1),
    optim=OptimConfig(lr=0.2, momentum=0.9, schedule="linear"),
    train=StepsConfig(steps=12, batch_size=4),
    precision="fp32",
)
FOREVER = 1e9


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for a busy core cost seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_images(count, seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    return Images.on(torch.device("cpu"), pixels, np.arange(count) % 3, np.arange(count))


VAL = some_images(20, seed=1)
NO_VAL = some_images(0, seed=1)


def make(images=10, config=CONFIG, **changes):
    train_images = some_images(images, seed=0)
    return Member(replace(config, **changes), train_images, 3)


class Notes:
    """Keeps what the loop tells; stops at the first look at or after `stop_at`."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.looks, self.losses, self.rows, self.states = [], [], [], []

    def look(self, step, loss, images_per_second):
        assert images_per_second > 0
        self.looks.append(step)
        self.losses.append(loss)

    def epoch(self, row):
        self.rows.append(row)

    def checkpoint(self, state):
        self.states.append(pack(state))

    def stopping(self):
        return self.stop_at is not None and self.looks[-1] >= self.stop_at


def run(member, val=VAL, progress=None, *, notes=None, checkpoint_seconds=FOREVER):
    """Train to the end; what was told."""
    notes = notes or Notes()
    progress = progress or Progress()
    assert train(member, val, notes, progress, checkpoint_seconds=checkpoint_seconds) == (
        member.step == member.config.train.steps
    )
    return notes, progress


def timeless(rows):
    return [{k: v for k, v in asdict(row).items() if k != "seconds"} for row in rows]


def weights(member):
    return {name: value.clone() for name, value in member.model.state_dict().items()}


def equal(some, others):
    assert some.keys() == others.keys()
    return all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize(
    ("images", "batch", "steps", "ends"),
    [
        (8, 4, 6, [2, 4, 6]),
        (8, 4, 5, [2, 4, 5]),
        (10, 4, 8, [3, 5, 8]),
        (10, 4, 7, [3, 5, 7]),
        (10, 4, 2, [2]),
        (7, 3, 7, [3, 5, 7]),
        (4, 4, 3, [1, 2, 3]),
        (3, 7, 4, [1, 2, 3, 4]),
        (1, 5, 2, [1, 2]),
        (20, 1, 21, [20, 21]),
    ],
)
def test_a_row_ends_every_pass_and_the_run(images, batch, steps, ends, monkeypatch):
    for look_seconds in (0, FOREVER):
        monkeypatch.setattr(loop, "LOOK_SECONDS", look_seconds)
        member = make(images, train=StepsConfig(steps, batch_size=batch))
        notes, progress = run(member)
        assert [row.step for row in progress.history] == ends
        assert notes.rows == progress.history
        epochs = [row.epoch for row in progress.history]
        assert epochs == pytest.approx([end * batch / images for end in ends], abs=1e-4)
        seconds = [row.seconds for row in progress.history]
        assert seconds[0] >= 0
        assert seconds == sorted(seconds)


def test_a_row_holds_the_means_over_its_batches_and_the_scores_on_val():
    twin, rows, means = make(), run(make())[1].history, []
    losses, right = [], 0
    while twin.step < 12:
        images, labels = twin.batches(twin.step)
        masks = twin.masks.get_state()
        with torch.no_grad():
            logits, _ = twin.model(images)  # as in training: augmented, with dropout
        twin.masks.set_state(masks)
        losses.append(F.cross_entropy(logits, labels, label_smoothing=0.1).item())
        right += int((logits.argmax(1) == labels).sum())
        twin.reset_sums()
        step(twin)
        if twin.step in (3, 5, 8, 10, 12):
            scores = accuracy_and_nll(logits_of(twin.model, twin.preprocess, VAL), VAL.labels_N)
            means.append((np.mean(losses), right / (4 * len(losses)), *scores))
            losses, right = [], 0
    found = [(r.train_loss, r.train_accuracy, r.val_accuracy, r.val_nll) for r in rows]
    assert len(found) == len(means) == 5
    for one, other in zip(found, means, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_row_holds_the_rate_of_its_last_update_before_a_layers_factor():
    optim = OptimConfig(lr=0.6, schedule="linear", lr_scale={"hidden.0": 0.1, "head": 3.0})
    _, progress = run(make(optim=optim))
    rates = [row.lr for row in progress.history]
    assert rates == pytest.approx([0.6 * (1 - (end - 1) / 12) for end in (3, 5, 8, 10, 12)])


def test_reported_losses_are_before_the_scale():
    optim = OptimConfig(lr=0.01)
    one = make(optim=optim, train=StepsConfig(1, batch_size=4))
    tenfold = make(optim=optim, train=StepsConfig(1, batch_size=4), loss=LossConfig(0.1, scale=10))
    (notes, progress), (others, other) = run(one), run(tenfold)
    assert progress.history[0].train_loss == other.history[0].train_loss
    assert notes.losses == others.losses
    assert not equal(weights(one), weights(tenfold))


def test_when_the_host_looks_and_saves_does_not_change_what_is_trained(monkeypatch):
    member = make()
    _, progress = run(member)
    while_looking = {}
    for look_seconds in (0, 1e-3, FOREVER):
        for checkpoint_seconds in (0, FOREVER):
            monkeypatch.setattr(loop, "LOOK_SECONDS", look_seconds)
            other = make()
            found, its = run(other, checkpoint_seconds=checkpoint_seconds)
            while_looking[look_seconds, checkpoint_seconds] = found
            assert equal(weights(other), weights(member))
            assert timeless(its.history) == timeless(progress.history)
            assert equal(its.best_weights, progress.best_weights)
    assert while_looking[0, 0].looks == list(range(1, 13))
    assert len(while_looking[FOREVER, 0].looks) < 12
    assert len(while_looking[0, 0].states) == 11
    assert not while_looking[0, FOREVER].states


def test_tensorboard_does_not_change_what_is_trained(tmp_path):
    files, events = [], []
    for tensorboard in ("true", "false"):
        words = ["budget=smoke", "threads=1", f"artifacts.tensorboard={tensorboard}"]
        [(config, chosen)] = train_configs([*words, f"runs_dir={tmp_path / tensorboard}"])
        planned = plan(config, chosen, [])
        execute(planned)
        files.append((planned.folder.path / "model.safetensors").read_bytes())
        events.append(len(list(planned.folder.path.rglob("events.out.tfevents.*"))))
    assert files[0] == files[1]
    assert events == [1, 0]


@pytest.mark.parametrize(
    ("images", "checkpoint_seconds", "expected"),
    [
        (1000, 0.75, [3, 6, 9]),  # within a pass, as often as was asked for
        (1000, 0, list(range(1, 12))),
        (8, FOREVER, [4, 8]),  # the ends of passes: every half second, saved once a second
        (16, FOREVER, [4, 8]),
        (24, FOREVER, [6]),
        (8, 0.5, [2, 4, 6, 8, 10]),
    ],
)
def test_checkpoints_come_as_often_as_asked_and_at_ends_of_passes(
    images, checkpoint_seconds, expected, monkeypatch
):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)

    def quarter_of_a_second(member):
        step(member)
        clock.now += 0.25

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "step", quarter_of_a_second)
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0)
    notes, progress = run(make(images), checkpoint_seconds=checkpoint_seconds)
    assert [unpack(state)["member"]["step"] for state in notes.states] == expected
    assert progress.seconds == 3.0


def test_best_val_is_the_first_highest_with_the_weights_it_had(monkeypatch):
    scripted = iter([0.0, 0.5, 0.75, 0.75, 0.25])
    monkeypatch.setattr(loop, "accuracy_and_nll", lambda *_: (next(scripted), 1.0))
    member, kept = make(), {}
    notes = Notes()
    notes.epoch = lambda row: kept.update({row.step: weights(member)})
    _, progress = run(member, notes=notes)
    assert progress.best is not None
    assert (progress.best.step, progress.best.val_accuracy) == (8, 0.75)
    assert list(kept) == [3, 5, 8, 10, 12]
    assert equal(progress.best_weights, kept[8])


def test_a_val_that_is_never_right_still_has_a_best(monkeypatch):
    monkeypatch.setattr(loop, "accuracy_and_nll", lambda *_: (0.0, 1.0))
    _, progress = run(make())
    assert progress.best is not None
    assert progress.best.step == 3


def test_without_val_rows_have_no_val_and_there_is_no_best():
    with_val, without = make(), make()
    _, progress = run(with_val)
    _, alone = run(without, NO_VAL)
    assert {(row.val_accuracy, row.val_nll) for row in alone.history} == {(None, None)}
    assert alone.best is None
    assert alone.best_weights is None
    assert equal(weights(with_val), weights(without))
    train_parts = [(row.step, row.train_loss) for row in progress.history]
    assert [(row.step, row.train_loss) for row in alone.history] == train_parts


@pytest.mark.parametrize("val", [VAL, NO_VAL], ids=["val", "no val"])
def test_a_run_stopped_anywhere_goes_on_to_the_same_rows_and_weights(val, monkeypatch):
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0)
    undisturbed = make()
    _, expected = run(undisturbed, val)
    for stop_at in range(1, 12):
        stopped = make()
        notes, before = run(stopped, val, notes=Notes(stop_at))
        assert stopped.step == stop_at
        assert [unpack(state)["member"]["step"] for state in notes.states] == [stop_at]

        state = unpack(notes.states[-1])
        member, progress = make(), Progress.load(state["progress"])
        member.load(state["member"])
        assert timeless(progress.history) == timeless(before.history)
        notes, progress = run(member, val, progress)
        assert equal(weights(member), weights(undisturbed))
        assert timeless(progress.history) == timeless(expected.history)
        assert progress.seconds >= before.seconds
        if val is VAL:
            assert timeless([progress.best]) == timeless([expected.best])
            assert equal(progress.best_weights, expected.best_weights)


def test_a_finished_run_has_nothing_left_to_train():
    member = make()
    _, progress = run(member)
    before = weights(member)
    notes, progress = run(member, progress=progress)
    assert equal(weights(member), before)
    assert not notes.looks
    assert len(progress.history) == 5


def test_stopping_at_the_last_step_is_the_end():
    notes, _ = run(make(), notes=Notes(stop_at=12))
    assert notes.rows[-1].step == 12


@pytest.mark.parametrize("look_seconds", [0, FOREVER])
@pytest.mark.parametrize("bad", [1, 2, 5, 9, 12])
def test_divergence_names_the_first_step_whose_loss_is_not_finite(bad, look_seconds, monkeypatch):
    monkeypatch.setattr(loop, "LOOK_SECONDS", look_seconds)
    member = make()
    batches = member.batches

    class Poisoned:
        def __len__(self):
            return len(batches)

        def __getattr__(self, name):
            return getattr(batches, name)

        def draws(self, number, steps):
            self.number = number
            return batches.draws(number, steps)

        def pixels(self, draws):
            pixels = batches.pixels(draws)
            return pixels * float("nan") if self.number == bad - 1 else pixels

    member.batches = Poisoned()
    with pytest.raises(Diverged, match=f"the training loss is not finite at step {bad}$") as error:
        run(member)
    assert error.value.step == bad


@pytest.mark.parametrize("look_seconds", [0, FOREVER])
def test_a_huge_rate_diverges_at_the_second_step(look_seconds, monkeypatch):
    monkeypatch.setattr(loop, "LOOK_SECONDS", look_seconds)
    with pytest.raises(Diverged) as error:
        run(make(optim=OptimConfig(lr=1e30)))
    assert error.value.step == 2


def test_divergence_in_the_last_update_shows_on_val():
    huge = OptimConfig(lr=1e30)
    with pytest.raises(Diverged, match=r"an output on val is not finite at step 1$") as error:
        run(make(optim=huge, train=StepsConfig(1, batch_size=4)))
    assert error.value.step == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_number_of_threads_gives_the_same_bits(threads):
    torch.set_num_threads(threads)
    wide = MLPConfig(widths=[300, 300], dropout=0.3)
    one, other = (make(500, model=wide, train=StepsConfig(3, batch_size=256)) for _ in range(2))
    (_, progress), (_, its) = run(one), run(other)
    assert equal(weights(one), weights(other))
    assert timeless(progress.history) == timeless(its.history)


# Fewer evaluations than passes.


def with_evals(evals, steps=12, batch_size=4):
    return make(8, train=StepsConfig(steps, batch_size=batch_size, evals=evals))


def test_evaluations_are_spread_over_the_passes_and_the_last_is_one():
    _, often = run(with_evals(None))
    _, seldom = run(with_evals(2))
    assert [row.step for row in seldom.history] == [row.step for row in often.history]
    evaluated = [row.step for row in seldom.history if row.val_accuracy is not None]
    assert evaluated == [6, 12]
    for rare, row in zip(seldom.history, often.history, strict=True):
        assert (rare.val_nll is None) == (rare.val_accuracy is None)
        assert rare.train_loss == row.train_loss
        if rare.val_accuracy is not None:
            assert (rare.val_accuracy, rare.val_nll) == (row.val_accuracy, row.val_nll)


def test_the_best_is_chosen_among_what_was_evaluated():
    _, progress = run(with_evals(3))
    evaluated = [row for row in progress.history if row.val_accuracy is not None]
    best = max(evaluated, key=lambda row: (row.val_accuracy, -row.step))
    assert progress.best == best


def test_fewer_evaluations_do_not_change_what_is_trained():
    often, seldom = with_evals(None), with_evals(1)
    run(often)
    run(seldom)
    assert equal(weights(often), weights(seldom))


def test_a_resumed_run_evaluates_where_an_undisturbed_one_does(monkeypatch):
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0)
    _, undisturbed = run(with_evals(3))
    for stop_at in range(1, 12):
        notes = Notes(stop_at)
        train(with_evals(3), VAL, notes, Progress(), checkpoint_seconds=FOREVER)
        state = unpack(notes.states[-1])
        member, progress = with_evals(3), Progress.load(state["progress"])
        member.load(state["member"])
        run(member, progress=progress)
        assert timeless(progress.history) == timeless(undisturbed.history)
