"""A member: one run's network, optimiser and batches, and the step that trains it.

`step` does everything for one batch and never waits for the device. What it does there is
`update`, a function of tensors alone, so that the same serves alone, in a worker process and
captured as a graph (bank.py).
Shape letters: B examples in a batch, K classes, S steps since the last look, G groups of
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lsexp.config import FOREIGN, DistillationConfig, TrainConfig
from lsexp.data.batches import Batches, Epoch, Images, Preprocess, generator, input_shape
from lsexp.losses import distillation_loss, smoothed_cross_entropy, targets
from lsexp.models import build_model
from lsexp.models.foreign import seed_generators
from lsexp.training.optimizer import build_optimizer, clip, rate
from lsexp.training.teacher import Network, Teacher

RATES = 4096
"""Steps whose rates are made at once."""
MOST_STEPS = 64
"""Most steps that are asked for together."""


class Member:
    """The state of one run in training.

    Args:
        train: images to train on; what `data.normalize` needs to know is taken from them.
        num_classes: K.
        teacher: of a student (`loss=distillation`), and only of one.

    Attributes:
        step: updates made so far.
        preprocess: pixels to inputs, for evaluation too.
        losses_S, correct: of the batches since the last `reset_sums`: the
            loss of each (nats, float32, before `loss.scale`) and how many images were
            classified right, counted in training, on augmented images. There is room for one
            pass over the images; the loop resets at the end of each.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Images,
        num_classes: int,
        teacher: Teacher | None = None,
    ):
        assert (teacher is not None) == isinstance(config.loss, DistillationConfig)
        device = train.labels_N.device
        dropout_seed = generator(config.seed, "dropout").initial_seed()
        self.config = config
        self.teacher = teacher
        self.device = device
        self.masks = torch.Generator(device).manual_seed(dropout_seed)
        self.model = build_model(
            config.model,
            input_shape(train.shape, config.augment),
            num_classes,
            init=generator(config.seed, "init"),
            dropout=self.masks,
        ).to(device)
        foreign = isinstance(config.model, FOREIGN)
        on_gpu = device.type == "cuda" and not foreign
        self.rounded = _rounded_names(self.model) if on_gpu else []
        self.optimizer = build_optimizer(self.model, config.optim)
        crop = config.augment.crop
        self.preprocess = Preprocess.fit(config.data.normalize, train, crop)
        self.batches = Batches(
            train,
            self.preprocess,
            config.augment,
            batch_size=config.train.batch_size,
            seed=config.seed,
        )
        self.eps_uniform = targets(config.loss, num_classes).eps_uniform
        self.step = 0
        steps_per_epoch = len(self.batches) // config.train.batch_size + 2
        self.losses_S = torch.zeros(steps_per_epoch, device=device)
        self.since_reset = 0
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self._rates: tuple[int, Tensor] = (-1, torch.empty(0))

    def rates(self, step: int, steps: int = 1) -> Tensor:
        """Rates of the updates from `step` on, by group of parameters: float32 [steps, G], on the
        device, so that no update waits for the host."""
        block, first = divmod(step, RATES)
        if self._rates[0] != block:  # a little more than a block, for those that end behind it
            config, groups = self.config, self.optimizer.param_groups
            rows = [
                [rate(config.optim, at, config.train.steps) * g["lr_scale"] for g in groups]
                for at in range(block * RATES, block * RATES + RATES + MOST_STEPS)
            ]
            self._rates = block, torch.tensor(rows).to(self.device, non_blocking=True)
        return self._rates[1][first : first + steps]

    def draws(self, steps: int = 1) -> tuple[Epoch, Epoch | None]:
        """What is drawn for the next steps: of the images, and for a teacher that sees its own."""
        own = None if self.teacher is None else self.teacher.own
        return (
            self.batches.draws(self.step, steps),
            None if own is None else own.draws(self.step, steps),
        )

    def moved(self) -> list[Tensor]:
        """The tensors that an update changes in place."""
        state = [value for one in self.optimizer.state.values() for value in one.values()]
        tensors = [value for value in state if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *tensors, self.correct]

    def reset_sums(self) -> None:
        self.since_reset = 0
        self.correct.zero_()

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on bit for bit; tensors are copies on the CPU."""
        return {
            "step": self.step,
            "model": _copy(self.model.state_dict()),
            "optimizer": _copy(self.optimizer.state_dict()),
            "masks": self.masks.get_state(),
            "losses": _copy(self.losses_S[: self.since_reset]),
            "correct": int(self.correct),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; it is copied."""
        state = _copy(state)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        # The generators of a CPU and a GPU differ: after a move, dropout draws anew.
        if state["masks"].shape == self.masks.get_state().shape:
            self.masks.set_state(state["masks"])
        self.since_reset = len(state["losses"])
        self.losses_S[: self.since_reset] = state["losses"].to(self.device)
        self.correct.fill_(state["correct"])


def step(member: Member) -> None:
    """One update from the next batch; no host synchronisation."""
    config = member.config
    if isinstance(config.model, FOREIGN) or isinstance(member.teacher, Network):
        # Networks of others draw from generators of all: by seed and step, so that runs resume.
        seed_generators(generator(config.seed, "dropout", member.step).initial_seed())
    groups = member.optimizer.param_groups
    if member.device.type == "cuda":  # as a graph reads them, and so to the same last bit
        rates = list(member.rates(member.step)[0])
    else:
        lr = rate(config.optim, member.step, config.train.steps)
        rates = [lr * group["lr_scale"] for group in groups]
    member.losses_S[member.since_reset] = update(member, *member.draws(), rates)
    member.since_reset += 1
    member.step += 1


def update(
    member: Member, draws: Epoch, own: Epoch | None, rates: Sequence[float | Tensor]
) -> Tensor:
    """What a step does on the device, with what was drawn for it (`own`: for its teacher) and the
    rate of each group of parameters; gives the loss."""
    config = member.config
    pixels_BHWC = member.batches.pixels(draws)
    images_BCHW, labels_B = member.preprocess(pixels_BHWC), member.batches.labels(draws)
    with torch.autocast(
        member.device.type,
        dtype=torch.bfloat16,
        enabled=config.precision == "bf16",
        cache_enabled=False,
    ):
        logits_BK, _ = _forward(member, images_BCHW)
    if member.teacher is not None:
        assert isinstance(config.loss, DistillationConfig)
        teacher_BK = member.teacher(pixels_BHWC, draws, own)
        protocol = config.loss
        loss = distillation_loss(
            logits_BK,
            teacher_BK,
            labels_B,
            temperature=protocol.temperature,
            student_temperature=protocol.student_temperature,
            t_squared=protocol.t_squared,
            match=protocol.match,
            beta=protocol.beta,
            eps_uniform=member.eps_uniform,
        )
    else:
        loss = smoothed_cross_entropy(logits_BK, labels_B, member.eps_uniform)
    member.optimizer.zero_grad(set_to_none=True)
    (loss * config.loss.scale).backward()
    clip(member.optimizer, config.optim)
    for group, lr in zip(member.optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    member.optimizer.step()
    member.correct += (logits_BK.argmax(1) == labels_B).sum()
    return loss.detach()


def _forward(member: Member, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """As `member.model`. On a GPU all weights that autocast would round are rounded at once, since
    each operation costs the same there, however small."""
    names = member.rounded
    if not names or not torch.is_autocast_enabled(member.device.type):
        found: tuple[Tensor, Tensor] = member.model(images_BCHW)
        return found
    weights = _Rounded.apply(*(member.model.get_parameter(name) for name in names))
    return functional_call(
        member.model, dict(zip(names, weights, strict=True)), (images_BCHW,), strict=False
    )


def _rounded_names(model: nn.Module) -> list[str]:
    """Parameters of the layers whose products autocast computes in bfloat16; of our networks."""
    layers = [
        (name, one) for name, one in model.named_modules() if type(one) in (nn.Conv2d, nn.Linear)
    ]
    return [f"{name}.{own}" for name, one in layers for own, _ in one.named_parameters()]


class _Rounded(torch.autograd.Function):
    """Tensors rounded to bfloat16; slopes come back as float32."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        # empty_like keeps the layout in memory.
        rounded = tuple(torch.empty_like(one, dtype=torch.bfloat16) for one in tensors)
        torch._foreach_copy_(rounded, tensors)
        return rounded

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, ...]:
        wide = tuple(torch.empty_like(one, dtype=torch.float32) for one in slopes)
        torch._foreach_copy_(wide, slopes)
        return wide


def _copy(value: Any) -> Any:
    """Tensors anywhere in dicts and lists, copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_copy(part) for part in value]
    return value
