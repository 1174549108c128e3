"""SGD as the paper's recipes need it: per-layer rates, decay on named parameters, schedules."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lsexp.config import OptimConfig
from lsexp.errors import UserError


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters of `model` by (rate factor, decay), each with them.

    Keys: `params`, `lr_scale`, and the decay as `weight_decay`, or as `clipped_decay` with
    optim.clip_decay.

    Raises:
        UserError: a name in optim.lr_scale or optim.decay matches no parameter, or two names in
            optim.lr_scale match the same.
    """
    names = [name for name, _ in model.named_parameters()]
    scales: dict[str, float] = {}
    for layer, scale in config.lr_scale.items():
        prefix = str(model.head_name) if layer == "head" else layer
        matched = [n for n in names if n.startswith(f"{prefix}.") or n == prefix]
        _require(matched, f"optim.lr_scale={layer}", names, "optim.lr_scale={head:0.1}")
        twice = [name for name in matched if name in scales]
        if twice:
            raise UserError(f"optim.lr_scale={layer}: {twice[0]} has a factor by another name too")
        scales.update(dict.fromkeys(matched, scale))
    decays: dict[str, float] = {}
    for pattern in config.decay:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        _require(matched, f"optim.decay={pattern}", names, "optim.decay=[*.weight]")
        decays.update(dict.fromkeys(matched, config.weight_decay))

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((scales.get(name, 1.0), decays.get(name, 0.0)), []).append(parameter)
    first = config.clip_decay  # then `clip` adds the decay, not the optimiser
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "weight_decay": 0.0 if first else decay,
            "clipped_decay": decay if first else 0.0,
        }
        for (scale, decay), parameters in groups.items()
    ]


class _SGD(torch.optim.SGD):
    """torch's SGD without its guards for torch.compile, which import `torch._dynamo`: as much time
    as `import torch` itself, in every process that trains. The updates are torch's."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over `parameter_groups`; a group's rate is the schedule's times its `lr_scale`.

    Momentum buffers start at zero, so that with dampening = momentum the first update is
    (1 - momentum) times the gradient, the running average that the paper's MNIST networks use;
    torch by itself would start with the whole one.
    """
    optimizer = _SGD(
        parameter_groups(model, config),
        lr=config.lr,
        momentum=config.momentum,
        dampening=config.dampening,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum > 0:
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def clip(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Clip the gradient of all parameters together to the norm `clip_norm`, if there is one.

    With `clip_decay` the decay is added first, as where it is part of the loss.
    """
    if config.clip_norm is None:
        return
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
        reached = [one for one in group["params"] if one.grad is not None]
        if group["clipped_decay"] and reached:
            slopes, weights = [one.grad for one in reached], [one.detach() for one in reached]
            torch._foreach_add_(slopes, weights, alpha=group["clipped_decay"])
    torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)


def _require(matched: list[str], words: str, names: Iterable[str], example: str) -> None:
    if not matched:
        known = list(names)
        more = f", ... ({len(known)} in all)" if len(known) > 12 else ""
        raise UserError(
            f"{words}: matches no parameter; they are {', '.join(known[:12])}{more}; where the "
            f"recipe says so, type your own, e.g. '{example}'"
        )


def rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of update `step` (from 0) of `steps`, before a layer's factor.

    >>> linear = OptimConfig(lr=1.0, schedule="linear")
    >>> [rate(linear, step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> steps = OptimConfig(lr=1.0, schedule="step", milestones=[0.5, 0.75], decay_factor=0.5)
    >>> [rate(steps, step, 8) for step in (0, 3, 4, 5, 6, 7)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    if config.schedule == "linear":
        return config.lr * (1 - step / steps)
    if config.schedule == "step":
        # Less a millionth, so that 2/3 of 390,000 as a float is 260,000 and not one more.
        passed = sum(step >= milestone * steps - 1e-6 for milestone in config.milestones)
        return config.lr * config.decay_factor**passed
    return config.lr
