"""What decides a run's result as an experiment, and the name made of it.

In: every typed key that is not declared aside, with precision resolved; the content of the data;
the identity of a student's teacher; RESULT_VERSION. Out: names of recipe and budget, device,
threads, folders, what is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

from lsexp.config import LossConfig, OptimConfig, TrainConfig, walk
from lsexp.training import RESULT_VERSION

Science = dict[str, Any]
"""Dotted key to value, JSON types only; equal for runs that are the same experiment."""


def science(config: TrainConfig, data_digest: str) -> Science:
    """The fields that decide the result of a resolved `config`."""
    assert config.precision != "auto", "resolve the config first"
    assert config.train.epochs is None, "resolve the config first"
    fields = {
        name: _plain(value, item)
        for name, item, value in walk(_in_effect(config))
        if not item.metadata["aside"] and not _neutral(value, item)
    }
    return {**fields, "data.digest": data_digest, "result_version": RESULT_VERSION}


def _in_effect(config: TrainConfig) -> TrainConfig:
    """The config with those keys that do nothing beside the others as they are by default."""
    loss, optim, usual = config.loss, config.optim, OptimConfig()
    if loss.eps == 0:
        loss = dataclasses.replace(loss, spread=LossConfig().spread)
    if optim.schedule != "step":
        optim = dataclasses.replace(
            optim, milestones=usual.milestones, decay_factor=usual.decay_factor
        )
    if optim.weight_decay == 0:
        optim = dataclasses.replace(optim, decay=usual.decay)
    return dataclasses.replace(config, loss=loss, optim=optim)


def digest(fields: Science) -> str:
    """12 hex digits over the science fields."""
    text = json.dumps(fields, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(config: TrainConfig, data_name: str, fields: Science) -> str:
    """`<data>-<model>-eps<eps>-seed<seed>-<12 hex>`, a student's with T<temperature> instead of the
    eps; the hex alone identifies."""
    values = {name: value for name, _, value in walk(config)}
    return name_of(values, data_name, fields)


def name_of(values: dict[str, Any], data_name: str, fields: Science) -> str:
    """As `run_name`, of a config as dotted key to value."""
    how = f"eps{values['loss.eps'] + 0.0:g}"  # -0.0 as 0
    if "loss.temperature" in values:
        how = f"T{values['loss.temperature']:g}"
    return f"{data_name}-{values['model.name']}-{how}-seed{values['seed']}-{digest(fields)}"


def looks_like_a_name(name: str) -> bool:
    """Whether it could be a run's.

    >>> looks_like_a_name("digits-mlp-eps0.1-seed0-74b4c5308e44"), looks_like_a_name("notes")
    (True, False)
    """
    return re.search(r"-seed\d+-[0-9a-f]{12}$", name) is not None


def _neutral(value: Any, item: dataclasses.Field) -> bool:
    """A key added later is left out at the value that means "as before", so old names stay."""
    return "neutral" in item.metadata and value == item.metadata["neutral"]


def _plain(value: Any, item: dataclasses.Field) -> Any:
    """JSON types with one spelling a value: 1 and 1.0 in a float field, -0.0 and 0.0."""
    if isinstance(value, dict):
        return {name: _plain(part, item) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part, item) for part in value]
    if "float" in str(item.type) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) + 0.0
    return value
