"""Keys, their ranges and their rules."""

import math
from collections import Counter
from dataclasses import fields

import pytest

from lsexp.config import (
    ArtifactsConfig,
    AugmentConfig,
    DataConfig,
    LossConfig,
    MLPConfig,
    OptimConfig,
    StepsConfig,
    TrainConfig,
    allowed,
    check,
    walk,
)
from lsexp.errors import UserError

SECTIONS = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "model": MLPConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "train": StepsConfig,
    "artifacts": ArtifactsConfig,
}


def config_with(**values):
    """The default config but for `section__key=value`."""
    config = TrainConfig(model=MLPConfig())
    for name, value in values.items():
        *sections, key = name.split("__")
        owner = config
        for section in sections:
            owner = getattr(owner, section)
        assert hasattr(owner, key)
        setattr(owner, key, value)
    return config


OUT_OF_RANGE = [
    ("data.split", "thirds"),
    ("data.split_seed", -1),
    ("data.split_seed", 2**32),
    ("data.train_size", 0),
    ("data.normalize", "pixel"),
    ("augment.shift", -1),
    ("model.widths", [1200, 0]),
    ("model.dropout", -0.1),
    ("model.dropout", 1.0),
    ("model.dropout", math.nan),
    ("model.init_std", 0.0),
    ("model.init_std", math.inf),
    ("loss.eps", -1e-9),
    ("loss.eps", 1.0),
    ("loss.eps", math.nan),
    ("loss.spread", "wrong"),
    ("loss.scale", 0.0),
    ("loss.scale", math.inf),
    ("optim.lr", 0.0),
    ("optim.lr", -1.0),
    ("optim.lr", math.nan),
    ("optim.lr", math.inf),
    ("optim.lr_scale", {"head": 0.1, "hidden.0": 0.0}),
    ("optim.lr_scale", {"head": math.nan}),
    ("optim.momentum", 1.0),
    ("optim.momentum", -0.1),
    ("optim.dampening", 1.1),
    ("optim.weight_decay", -1e-4),
    ("optim.weight_decay", math.inf),
    ("optim.clip_norm", 0.0),
    ("optim.clip_norm", math.nan),
    ("optim.schedule", "cosine"),
    ("optim.milestones", [0.5, 1.0]),
    ("optim.milestones", [0.0]),
    ("optim.milestones", [math.nan]),
    ("optim.decay_factor", 0.0),
    ("train.steps", 0),
    ("train.epochs", 0.0),
    ("train.epochs", math.inf),
    ("train.batch_size", 0),
    ("artifacts.checkpoint_seconds", -1.0),
    ("artifacts.checkpoint_seconds", math.nan),
    ("seed", -1),
    ("seed", 2**31),
    ("precision", "fp16"),
    ("device", "tpu"),
    ("threads", 0),
    ("resume", "maybe"),
    ("claim_timeout", 0.0),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_its_key(name, value):
    with pytest.raises(UserError, match=rf"^{name.replace('.', '[.]')}=.*: must be "):
        check(config_with(**{name.replace(".", "__"): value}))


IN_RANGE = [
    ("data.split_seed", 2**32 - 1),
    ("data.train_size", None),
    ("model.dropout", 0.0),
    ("model.init_std", None),
    ("loss.eps", 0.0),
    ("loss.eps", 0.999),
    ("optim.lr_scale", {}),
    ("optim.dampening", 1.0),
    ("optim.weight_decay", 0.0),
    ("optim.milestones", [0.001, 0.999]),
    ("train.steps", 1),
    ("train.batch_size", 1),
    ("artifacts.checkpoint_seconds", 0.0),
    ("seed", 0),
    ("seed", 2**31 - 1),
    ("threads", None),
]


@pytest.mark.parametrize(("name", "value"), IN_RANGE)
def test_a_value_at_the_end_of_its_range_is_taken(name, value):
    momentum = {"optim__momentum": 0.5} if name == "optim.dampening" else {}
    check(config_with(**{name.replace(".", "__"): value, **momentum}))


def test_dampening_without_momentum_is_refused_since_it_would_do_nothing():
    with pytest.raises(UserError, match=r"^optim\.dampening=0\.5: does nothing without momentum"):
        check(config_with(optim__dampening=0.5))


def test_a_network_goes_by_its_own_name():
    with pytest.raises(UserError, match=r"^model\.name=cnn: names are set by the network"):
        check(config_with(model__name="cnn"))


def test_the_words_of_a_refusal_say_what_is_allowed():
    with pytest.raises(UserError, match=r"^loss\.eps=1\.5: must be at least 0 and below 1; "):
        check(config_with(loss__eps=1.5))
    with pytest.raises(UserError, match=r"^loss\.spread=x: must be uniform or others; "):
        check(config_with(loss__spread="x"))
    with pytest.raises(UserError, match=r"^optim\.milestones=1\.5: must be more than 0 and below"):
        check(config_with(optim__milestones=[0.5, 1.5]))


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.9)])
def test_nesterov_needs_momentum_and_no_dampening(momentum, dampening):
    config = config_with(optim__nesterov=True, optim__momentum=momentum, optim__dampening=dampening)
    with pytest.raises(UserError, match=r"^optim\.nesterov=true: "):
        check(config)
    config.optim.nesterov = False
    check(config)
    check(config_with(optim__nesterov=True, optim__momentum=0.9))


def test_the_step_schedule_needs_milestones():
    with pytest.raises(UserError, match=r"^optim\.schedule=step: needs optim\.milestones"):
        check(config_with(optim__schedule="step"))
    check(config_with(optim__schedule="step", optim__milestones=[0.5]))
    check(config_with(optim__schedule="linear"))


def test_a_network_needs_a_hidden_layer():
    with pytest.raises(UserError, match=r"^model\.widths=\[\]: "):
        check(config_with(model__widths=[]))


def test_walk_meets_every_key_once():
    found = Counter(name for name, _, _ in walk(config_with()))
    expected = [
        f"{section}.{item.name}" for section, cls in SECTIONS.items() for item in fields(cls)
    ]
    expected += [
        item.name
        for item in fields(TrainConfig)
        if item.name not in (*SECTIONS, "budgets", "budget")
    ]
    assert found == Counter(expected)


def test_walk_gives_the_values_of_the_config():
    config = config_with(loss__eps=0.25, seed=7, model__widths=[3])
    values = {name: value for name, _, value in walk(config)}
    assert (values["loss.eps"], values["seed"], values["model.widths"]) == (0.25, 7, [3])


def test_every_key_says_what_it_means_and_every_number_has_a_range():
    for name, item, _ in walk(config_with()):
        assert item.metadata["doc"].strip(), name
        if "int" in str(item.type) or "float" in str(item.type):
            assert allowed(item), name


def test_defaults_of_lists_and_tables_are_not_shared():
    one, other = config_with(), config_with()
    one.model.widths.append(5)
    one.optim.lr_scale["head"] = 0.1
    assert other.model.widths == [1200, 1200]
    assert other.optim.lr_scale == {}
