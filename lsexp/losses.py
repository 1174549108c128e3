"""Training losses: cross-entropy against smoothed labels or against a teacher.

Losses are in nats. Shape letters: B examples in a batch, K classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lsexp.config import LossConfig
from lsexp.errors import UserError


class Targets(NamedTuple):
    """What smoothing asks of the network's output, the same for every example.

    Attributes:
        true, other: target probability of the labelled class and of each other class.
        eps_uniform: eps that gives these targets when spread over all K classes (the paper's
            alpha, PyTorch's label_smoothing).
        eps_others: eps that gives them when spread over the K - 1 wrong classes.
        logit_gap: logit of the labelled class minus any other where the loss is smallest,
            log(true / other); None for hard labels, where there is no such point.
    """

    true: float
    other: float
    eps_uniform: float
    eps_others: float
    logit_gap: float | None


def targets(config: LossConfig, num_classes: int) -> Targets:
    """The targets of `loss.eps` and `loss.spread` at K classes.

    `uniform` keeps 1 - eps + eps / K on the labelled class (section 2 of the paper), `others`
    keeps 1 - eps.

    Raises:
        UserError: the labelled class would not be the likeliest one.

    >>> targets(LossConfig(eps=0.1), num_classes=10)._asdict()  # doctest: +ELLIPSIS
    {'true': 0.91, 'other': 0.01, 'eps_uniform': 0.1, 'eps_others': 0.09, 'logit_gap': 4.51...}
    >>> round(targets(LossConfig(eps=0.1, spread="others"), num_classes=10).eps_uniform, 4)
    0.1111
    """
    eps, k = config.eps, num_classes
    if config.spread == "others" and eps >= (k - 1) / k:
        raise UserError(
            f"loss.eps={eps:g}: with loss.spread=others and {k} classes it must be below "
            f"{(k - 1) / k:g}, where every class would be as likely"
        )
    uniform = eps if config.spread == "uniform" else eps * k / (k - 1)
    others = eps if config.spread == "others" else eps * (k - 1) / k
    true, other = 1 - others, others / (k - 1)
    gap = math.log(true / other) if other > 0 else None
    return Targets(true, other, uniform, others, gap)


def smooth_labels(labels_B: Tensor, num_classes: int, eps: float) -> Tensor:
    """Mix the one-hot labels with the uniform distribution over all K classes.

    Args:
        labels_B: class indices, int64.
        num_classes: K, at least 1.
        eps: mass that is spread evenly, 0..1; alpha in the paper. The true class keeps
            `1 - eps + eps / K`, not `1 - eps`.

    Returns:
        Target distributions, float32 `[B, K]`; each row sums to one.

    Raises:
        ValueError: an eps outside 0..1, or no classes.
        RuntimeError: labels that are no class of K (torch's; on a GPU it comes later).

    >>> import torch
    >>> smooth_labels(torch.tensor([2]), num_classes=4, eps=0.2)
    tensor([[0.0500, 0.0500, 0.8500, 0.0500]])
    """
    _check_share("eps", eps)
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    return (1 - eps) * F.one_hot(labels_B, num_classes).float() + eps / num_classes


def smoothed_cross_entropy(logits_BK: Tensor, labels_B: Tensor, eps_uniform: float) -> Tensor:
    """Mean over the batch of the cross-entropy H(smoothed label, softmax(logits)).

    Args:
        logits_BK: any floating type; computed in float32 (float64 stays).
        labels_B: class indices, int64.
        eps_uniform: mass spread over all K classes, 0..1; alpha in the paper.

    Returns:
        A scalar in nats. Its least value is the entropy of the targets, not 0.

    Raises:
        ValueError: an eps_uniform outside 0..1.

    It equals `-(smooth_labels(...) * log_softmax(logits)).sum(1).mean()` without building the
    targets, without overflow for logits 1e30 apart (sums past float32's 3e38 are infinite). A
    logit of -inf makes it infinite where its class has a target above 0; NaN where all are -inf.

    >>> import torch
    >>> smoothed_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 0.2)
    tensor(0.3269)
    """
    _check_share("eps_uniform", eps_uniform)
    if logits_BK.dtype != torch.float64:
        logits_BK = logits_BK.float()
    return F.cross_entropy(logits_BK, labels_B, label_smoothing=eps_uniform)


def distillation_loss(
    logits_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 1.0,
    student_temperature: str = "1",
    t_squared: bool = False,
    match: str = "cross_entropy",
    beta: float = 1.0,
    eps_uniform: float = 0.0,
) -> Tensor:
    """Mean over the batch of (1 - beta) H(smoothed label, p) + beta M, what matches the teacher.

    | `match` | M |
    |---|---|
    | cross_entropy | H(softmax(teacher / T), softmax(logits / T_s)), nats; times T^2 where asked |
    | logits | half the squared distance of the logits, summed over classes |

    T_s is 1 as in the paper's experiments (section 4: only the teacher's logits are divided by a
    temperature), or T ("tied": Hinton, Vinyals, Dean 2015). For large T the gradient of tied
    temperatures times T^2 is that of M of `logits` over K, for logits of mean 0 (their section
    2.1).

    Logits 1e30 apart do not overflow, at any T from .05 to 100, but their squares (`match=logits`)
    past float32's 3e38 are infinite. Logits, or logits / T, that are not finite or farther than
    3e38 apart may give NaN.

    Args:
        logits_BK: the student's, any floating type; computed in float32 (float64 stays).
        teacher_BK: the teacher's, of the same shape; no gradient goes there.
        labels_B: class indices, int64; with beta 1 they do not count.
        temperature: T, finite and above 0.
        student_temperature: "1" or "tied".
        t_squared: whether M of `cross_entropy` is multiplied by T^2.
        match: "cross_entropy" or "logits", which knows no temperature.
        beta: share of the teacher's part, 0..1.
        eps_uniform: smoothing of the labels' part, 0..1, as in `smoothed_cross_entropy`.

    Returns:
        A scalar; in nats, or for `match=logits` and beta 1 in squared units of the logits.

    Raises:
        ValueError: another word, or a number outside its range.

    >>> import torch
    >>> teacher, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> distillation_loss(torch.zeros(1, 2), teacher, labels)  # log 2, whatever the teacher says
    tensor(0.6931)
    >>> distillation_loss(torch.zeros(1, 2), teacher, labels, match="logits")
    tensor(2.)
    """
    _check_word("match", match, ("cross_entropy", "logits"))
    _check_word("student_temperature", student_temperature, ("1", "tied"))
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be finite and above 0, not {temperature}")
    _check_share("beta", beta)
    _check_share("eps_uniform", eps_uniform)
    if logits_BK.dtype != torch.float64:
        logits_BK = logits_BK.float()
    teacher_BK = teacher_BK.detach().to(logits_BK.dtype)
    if match == "logits":
        matched = 0.5 * (logits_BK - teacher_BK).square().sum(1).mean()
    else:
        own = temperature if student_temperature == "tied" else 1.0
        matched = F.cross_entropy(logits_BK / own, (teacher_BK / temperature).softmax(1))
        if t_squared:
            matched = matched * temperature**2
    if beta == 1:
        return matched
    hard = smoothed_cross_entropy(logits_BK, labels_B, eps_uniform)
    return (1 - beta) * hard + beta * matched


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in 0..1, not {value}")


def _check_word(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise ValueError(f"{name} must be {words}, not {value!r}")
