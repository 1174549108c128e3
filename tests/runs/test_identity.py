from dataclasses import dataclass, replace

import pytest

from lsexp.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    MLPConfig,
    OptimConfig,
    StepsConfig,
    TrainConfig,
    key,
)
from lsexp.runs.identity import _neutral, digest, run_name, science

DATA = "0" * 64


def config(**changes):
    return replace(TrainConfig(model=MLPConfig(), precision="fp32"), **changes)


def name(**changes):
    return digest(science(config(**changes), DATA))


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda"},
        {"threads": 7},
        {"runs_dir": "elsewhere"},
        {"data_dir": "elsewhere"},
        {"resume": "any"},
        {"retry_failed": True},
        {"claim_timeout": 99.0},
        {"budgets": {"cpu": None}},
    ],
)
def test_where_and_how_a_run_is_scheduled_does_not_name_it(changes):
    assert name(**changes) == name()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"precision": "bf16"},
        {"loss": LossConfig(eps=0.1)},
        {"loss": LossConfig(eps=0.1, spread="others")},
        {"optim": OptimConfig(schedule="linear")},
        {"optim": OptimConfig(weight_decay=1e-4)},
        {"train": StepsConfig(steps=999)},
        {"model": MLPConfig(widths=[1200])},
    ],
)
def test_what_decides_the_result_names_it(changes):
    assert name(**changes) != name()


@pytest.mark.parametrize(
    ("some", "others"),
    [
        ({"loss": LossConfig(spread="others")}, {}),
        (
            {"optim": OptimConfig(schedule="linear", milestones=[0.5], decay_factor=0.5)},
            {"optim": OptimConfig(schedule="linear")},
        ),
        ({"optim": OptimConfig(decay=[])}, {}),
    ],
)
def test_what_does_nothing_does_not_name_it(some, others):
    assert name(**some) == name(**others)


@pytest.mark.parametrize(
    ("some", "others"),
    [
        ({"loss": LossConfig(eps=0.1, spread="others")}, {"loss": LossConfig(eps=0.1)}),
        (
            {"optim": OptimConfig(schedule="step", milestones=[0.5], decay_factor=0.5)},
            {"optim": OptimConfig(schedule="step", milestones=[0.5])},
        ),
        (
            {"optim": OptimConfig(weight_decay=1e-4, decay=[])},
            {"optim": OptimConfig(weight_decay=1e-4)},
        ),
    ],
)
def test_the_same_keys_name_it_where_they_do_something(some, others):
    assert name(**some) != name(**others)


def test_the_content_of_the_data_names_it():
    assert digest(science(config(), "1" * 64)) != name()


def test_one_value_has_one_spelling():
    assert name(loss=LossConfig(eps=0)) == name(loss=LossConfig(eps=-0.0)) == name()
    assert name(loss=LossConfig(scale=3)) == name(loss=LossConfig(scale=3.0))


def test_one_value_has_one_folder():
    signed = config(loss=LossConfig(eps=-0.0))
    assert run_name(signed, "mnist", science(signed, DATA)) == (
        run_name(config(), "mnist", science(config(), DATA))
    )


def test_the_name_of_a_known_config_stays(monkeypatch):
    # Another digest here means that every run trained so far has lost its name.
    monkeypatch.setattr("lsexp.runs.identity.RESULT_VERSION", 1)
    fields = science(config(loss=LossConfig(eps=0.1), seed=3), DATA)
    assert run_name(config(loss=LossConfig(eps=0.1), seed=3), "mnist", fields) == (
        "mnist-mlp-eps0.1-seed3-9380ae966f79"
    )


def test_result_version_is_part_of_the_identity(monkeypatch):
    before = name()
    monkeypatch.setattr("lsexp.runs.identity.RESULT_VERSION", 10**6)
    assert name() != before


def test_a_later_key_is_left_out_at_its_neutral_value():
    @dataclass
    class Later:
        warmup: int = key(0, "steps", neutral=0)

    (item,) = Later.__dataclass_fields__.values()
    assert _neutral(0, item)
    assert not _neutral(5, item)


def test_unresolved_configs_have_no_identity():
    with pytest.raises(AssertionError):
        science(config(precision="auto"), DATA)


@pytest.mark.parametrize("where", [{"path": "x.npz"}, {"url": "file:///x"}, {"name": "npz"}])
def test_where_the_data_come_from_does_not_name_it(where):
    assert name(data=DataConfig(**where)) == name()
    assert name(data=DataConfig(**where, split_seed=1)) != name()


def test_keys_that_came_later_leave_the_names_of_before_at_their_neutral_values():
    later = {
        "augment.crop",
        "augment.flip",
        "augment.brightness",
        "augment.contrast",
        "optim.clip_decay",
        "train.evals",
    }
    assert not later & set(science(config(), DATA))
    changed = config(
        augment=AugmentConfig(crop=3, flip=True, brightness=1.0, contrast=0.1),
        optim=OptimConfig(clip_norm=1.0, clip_decay=True),
        train=StepsConfig(evals=3),
    )
    assert later <= set(science(changed, DATA))
