"""The paper's networks once more, slow and plain: other code to compare with.

Functions of the named weights in float64 or float32, with explicit padding, torch's own
normalisations and no memory formats.
"""

import torch
import torch.nn.functional as F
from torch import nn

LRN = nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1)


def tf_same_pool(x):
    """tf.nn.max_pool with a window of 3, stride 2 and SAME, by TensorFlow's documented formula."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        out = -(-size // 2)
        total = max((out - 1) * 2 + 3 - size, 0)
        pads += [total // 2, total - total // 2]
    return F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, stride=2)


def alexnet(weights, x):
    """(logits, features) of the tutorial's network."""

    def layer(name, x, op):
        return F.relu(op(x, weights[f"{name}.weight"], weights[f"{name}.bias"]))

    def conv(x, weight, bias):
        return F.conv2d(F.pad(x, (2, 2, 2, 2)), weight, bias)

    x = LRN(tf_same_pool(layer("conv1", x, conv)))
    x = tf_same_pool(LRN(layer("conv2", x, conv)))
    x = layer("fc1", x.reshape(len(x), -1), F.linear)
    features = layer("fc2", x, F.linear)
    return F.linear(features, weights["fc3.weight"], weights["fc3.bias"]), features


def batch_norm(weights, name, x, training):
    """By the formulas; running statistics are updated in `weights`."""
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        count = x.numel() / x.shape[1]
        with torch.no_grad():
            for kind, value in (("mean", mean), ("var", var * count / (count - 1))):
                running = weights[f"{name}.running_{kind}"]
                running.copy_(0.9 * running + 0.1 * value)
    else:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def resnet(weights, x, *, blocks_in_a_group, training):
    """(logits, features) of the pre-activation network."""

    def conv(name, x, stride=1):
        kernel = weights[f"{name}.weight"]
        pad = kernel.shape[2] // 2
        return F.conv2d(F.pad(x, (pad, pad, pad, pad)), kernel, stride=stride)

    def active(name, x):
        return F.relu(batch_norm(weights, name, x, training))

    x = active("stem_bn", conv("stem", x))
    for number in range(3 * blocks_in_a_group):
        first = number % blocks_in_a_group == 0
        stride = 2 if first and number else 1
        name = f"blocks.{number}"
        shortcut, inner = x, active(f"{name}.bn1", x)
        if first:
            shortcut = conv(f"{name}.project", inner, stride)
            shortcut = batch_norm(weights, f"{name}.project_bn", shortcut, training)
        inner = conv(f"{name}.conv1", inner, stride)
        inner = conv(f"{name}.conv2", active(f"{name}.bn2", inner))
        x = inner + shortcut
    features = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return F.linear(features, weights["fc.weight"], weights["fc.bias"]), features


def copies(model, dtype=torch.float64):
    """The weights and buffers of `model`, by name, contiguous; weights require a gradient."""
    found = {
        name: value.detach().to(dtype, copy=True).contiguous()
        for name, value in model.state_dict().items()
    }
    for name, _ in model.named_parameters():
        found[name].requires_grad_()
    return found
