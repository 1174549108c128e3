"""The loss and its targets, against explicit sums, PyTorch and calculus."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from lsexp.config import LossConfig
from lsexp.errors import UserError
from lsexp.losses import distillation_loss, smooth_labels, smoothed_cross_entropy, targets


def random_batch(classes, size=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, classes, dtype=torch.float64, generator=rng)
    return logits, torch.randint(0, classes, (size,), generator=rng)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_loss_is_the_cross_entropy_against_smoothed_targets(eps, classes):
    logits, labels = random_batch(classes)
    found = smoothed_cross_entropy(logits, labels, eps)
    assert found.dtype == torch.float64
    explicit = (1 - eps) * F.one_hot(labels, classes).double() + eps / classes
    expected = -(explicit * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, label_smoothing=eps))
    from_labels = smooth_labels(labels, classes, eps).double()
    expected = -(from_labels * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_smoothed_labels_by_hand():
    found = smooth_labels(torch.tensor([0, 3]), num_classes=4, eps=0.4)
    expected = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    torch.testing.assert_close(found, expected)


def test_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)  # probabilities 1/4, 3/4
    found = smoothed_cross_entropy(logits, torch.tensor([1]), 0.2)
    assert found.item() == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_eps_0_is_the_plain_cross_entropy():
    logits, labels = random_batch(5)
    expected = -logits.log_softmax(1)[torch.arange(7), labels].mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.0), expected)


def test_loss_does_not_move_when_a_constant_is_added_to_an_example():
    logits, labels = random_batch(5)
    moved = logits + torch.arange(7.0)[:, None]
    expected = smoothed_cross_entropy(logits, labels, 0.1)
    torch.testing.assert_close(smoothed_cross_entropy(moved, labels, 0.1), expected)


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradient_is_that_of_finite_differences_and_softmax_minus_targets(eps):
    logits, labels = random_batch(4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smoothed_cross_entropy(x, labels, eps), logits)
    smoothed_cross_entropy(logits, labels, eps).backward()
    smoothed = (1 - eps) * F.one_hot(labels, 4) + eps / 4
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - smoothed) / 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(dtype):
    logits, labels = random_batch(10)
    low = logits.to(dtype)
    found = smoothed_cross_entropy(low, labels, 0.1)
    assert found.dtype == torch.float32
    expected = smoothed_cross_entropy(low.double(), labels, 0.1).float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_huge_logits_give_a_finite_loss_and_gradient(dtype):
    logits = torch.zeros(1, 10, dtype=dtype)
    logits[0, 0] = 1e30
    logits.requires_grad_()
    loss = smoothed_cross_entropy(logits, torch.tensor([1]), 0.1)
    # Class 0 has probability 1 and target .01; the others miss by 1e30 each.
    assert loss.item() == pytest.approx(0.99 * logits[0, 0].item(), rel=1e-5)
    loss.backward()
    expected = torch.tensor([[0.99, -0.91, *[-0.01] * 8]]).to(dtype)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_least_value_is_the_entropy_of_the_targets(eps):
    labels = torch.tensor([2, 0])
    smoothed = (1 - eps) * F.one_hot(labels, 4).double() + eps / 4
    entropy = -(smoothed * smoothed.log()).sum(1).mean().item()
    best = smoothed.log()
    assert smoothed_cross_entropy(best, labels, eps).item() == pytest.approx(entropy)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = best + 0.1 * torch.randn(2, 4, dtype=torch.float64, generator=rng)
        assert smoothed_cross_entropy(other, labels, eps).item() > entropy


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_spread_others_keeps_1_minus_eps_on_the_label_and_spreads_over_the_rest(classes):
    eps = 0.2
    found = targets(LossConfig(eps=eps, spread="others"), classes)
    assert found.true == pytest.approx(0.8)
    assert found.other == pytest.approx(0.2 / (classes - 1))
    logits, labels = random_batch(classes)
    logp = logits.log_softmax(1)
    logp_true = logp[torch.arange(7), labels]
    others = logp.sum(1) - logp_true
    expected = -((1 - eps) * logp_true + eps / (classes - 1) * others).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, found.eps_uniform), expected)


@pytest.mark.parametrize("spread", ["uniform", "others"])
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("eps", [0.01, 0.1, 0.45])
def test_targets_sum_to_one_and_both_eps_say_the_same(spread, classes, eps):
    found = targets(LossConfig(eps=eps, spread=spread), classes)
    assert found.true + (classes - 1) * found.other == pytest.approx(1)
    assert found.true == pytest.approx(1 - found.eps_uniform + found.eps_uniform / classes)
    assert found.true == pytest.approx(1 - found.eps_others)
    assert found.other == pytest.approx(found.eps_uniform / classes)
    assert found.other == pytest.approx(found.eps_others / (classes - 1))
    assert (found.eps_uniform if spread == "uniform" else found.eps_others) == eps


@pytest.mark.parametrize(("spread", "eps"), [("uniform", 0.1), ("uniform", 0.6), ("others", 0.3)])
@pytest.mark.parametrize("classes", [2, 10])
def test_loss_is_least_at_the_logit_gap(spread, eps, classes):
    found = targets(LossConfig(eps=eps, spread=spread), classes)

    def loss(gap):
        logits = torch.zeros(1, classes, dtype=torch.float64)
        logits[0, 0] = gap
        return smoothed_cross_entropy(logits, torch.tensor([0]), found.eps_uniform).item()

    best = minimize_scalar(loss, bounds=(-20, 20), method="bounded", options={"xatol": 1e-9})
    assert found.logit_gap == pytest.approx(best.x, abs=1e-5)


@pytest.mark.parametrize("spread", ["uniform", "others"])
def test_hard_labels_have_no_logit_gap(spread):
    assert targets(LossConfig(eps=0.0, spread=spread), 10) == (1.0, 0.0, 0.0, 0.0, None)


@pytest.mark.parametrize(("classes", "limit"), [(2, 0.5), (4, 0.75), (10, 0.9)])
def test_spread_others_refuses_an_eps_that_makes_the_label_no_likelier(classes, limit):
    for eps in (limit, 0.95):
        with pytest.raises(UserError, match=rf"loss\.eps={eps}: .*others.* below {limit}"):
            targets(LossConfig(eps=eps, spread="others"), classes)
    just_below = targets(LossConfig(eps=limit - 1e-6, spread="others"), classes)
    assert just_below.true > just_below.other
    assert targets(LossConfig(eps=0.95, spread="uniform"), classes).logit_gap > 0


# Distillation


def distilled(logits, teacher, labels, eps=0.0, **keys):
    return distillation_loss(logits, teacher, labels, eps_uniform=eps, **keys)


def pair_of_logits(classes=5):
    logits, labels = random_batch(classes)
    return logits, random_batch(classes, seed=1)[0], labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("own", ["1", "tied"])
@pytest.mark.parametrize("t_squared", [False, True])
def test_the_students_loss_is_the_cross_entropy_against_the_teachers_softened_probabilities(
    temperature, own, t_squared
):
    logits, teacher, labels = pair_of_logits()
    keys = {"temperature": temperature, "student_temperature": own, "t_squared": t_squared}
    found = distilled(logits, teacher, labels, **keys)
    soft = (teacher / temperature).exp()
    soft = soft / soft.sum(1, keepdim=True)
    log_p = (logits / (temperature if own == "tied" else 1)).log_softmax(1)
    expected = -(soft * log_p).sum(1).mean() * (temperature**2 if t_squared else 1)
    torch.testing.assert_close(found, expected)


def test_a_teacher_that_is_sure_gives_hard_labels_and_an_ideal_smoothed_one_smoothed_labels():
    logits, _, labels = pair_of_logits(4)
    sure = 1e6 * F.one_hot(labels, 4).double()
    expected = smoothed_cross_entropy(logits, labels, 0.0)
    torch.testing.assert_close(distilled(logits, sure, labels), expected)
    ideal = smooth_labels(labels, 4, 0.2).double().log() + 7
    expected = smoothed_cross_entropy(logits, labels, 0.2)
    torch.testing.assert_close(distilled(logits, ideal, labels), expected, rtol=1e-6, atol=0)


def test_half_the_squared_distance_of_logits_by_hand():
    logits, teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [0.0, 4.0]])
    found = distilled(logits, teacher, torch.tensor([0, 1]), match="logits")
    assert found.item() == pytest.approx((0.5 * 4 + 0.5 * 16) / 2)


def test_tied_and_squared_high_temperatures_pull_like_squared_distances_of_centred_logits():
    """Hinton, Vinyals and Dean, section 2.1: the gradient tends to (z - v) / K."""
    logits, teacher, labels = pair_of_logits()
    gradients = []
    for keys in (
        {"temperature": 1e4, "student_temperature": "tied", "t_squared": True},
        {"match": "logits"},
    ):
        centred = [(part - part.mean(1, keepdim=True)).clone() for part in (logits, teacher)]
        centred[0].requires_grad_()
        distilled(*centred, labels, **keys).backward()
        gradients.append(centred[0].grad)
    torch.testing.assert_close(gradients[0], gradients[1] / 5, rtol=1e-2, atol=1e-5)


def test_beta_mixes_with_smoothed_labels_and_the_teacher_gets_no_gradient():
    logits, teacher, labels = pair_of_logits()
    teacher.requires_grad_()
    logits.requires_grad_()
    found = distilled(logits, teacher, labels, eps=0.1, beta=0.6, match="logits")
    alone = distilled(logits, teacher, labels, match="logits")
    expected = 0.4 * smoothed_cross_entropy(logits, labels, 0.1) + 0.6 * alone
    torch.testing.assert_close(found, expected)
    found.backward()
    assert teacher.grad is None
    assert logits.grad is not None


def test_bf16_logits_are_compared_in_float32():
    logits, teacher, labels = pair_of_logits()
    found = distilled(logits.bfloat16(), teacher.float(), labels)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"match": "logit"}, "match must be 'cross_entropy' or 'logits', not 'logit'"),
        ({"match": None}, "match must be .* not None"),
        ({"student_temperature": 4}, "student_temperature must be '1' or 'tied', not 4"),
        ({"student_temperature": 1}, "student_temperature must be '1' or 'tied', not 1"),
        ({"student_temperature": "Tied"}, "student_temperature must be .* not 'Tied'"),
        ({"temperature": 0}, "temperature must be finite and above 0, not 0"),
        ({"temperature": -2.0}, "temperature must be finite and above 0, not -2.0"),
        ({"temperature": math.inf}, "temperature must be finite and above 0, not inf"),
        ({"temperature": math.nan}, "temperature must be finite and above 0, not nan"),
        ({"beta": -0.1}, "beta must be in 0..1, not -0.1"),
        ({"beta": 1.5}, "beta must be in 0..1, not 1.5"),
        ({"eps": 2}, "eps_uniform must be in 0..1, not 2"),
        ({"eps": -0.1}, "eps_uniform must be in 0..1, not -0.1"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        distilled(*pair_of_logits(), **keys)


@pytest.mark.parametrize("eps", [-0.1, 1.1, 2, math.nan])
def test_targets_below_0_are_refused(eps):
    logits, labels = random_batch(4)
    with pytest.raises(ValueError, match=f"eps must be in 0..1, not {eps}"):
        smooth_labels(labels, 4, eps)
    with pytest.raises(ValueError, match=f"eps_uniform must be in 0..1, not {eps}"):
        smoothed_cross_entropy(logits, labels, eps)


@pytest.mark.parametrize("classes", [0, -1])
def test_no_classes_have_no_labels(classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, not {classes}"):
        smooth_labels(torch.tensor([0]), classes, 0.1)


def test_the_ends_of_what_is_allowed():
    logits, teacher, labels = pair_of_logits(4)
    torch.testing.assert_close(smooth_labels(labels, 4, 1.0), torch.full((7, 4), 0.25))
    expected = -logits.log_softmax(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 1), expected)
    expected = smoothed_cross_entropy(logits, labels, 0.1)
    torch.testing.assert_close(distilled(logits, teacher, labels, eps=0.1, beta=0), expected)
