"""Forward passes over a split, in float32 whatever the training precision.

bf16 logits have eight significant bits, too few for calibration.
Shape letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsexp.data.batches import Images, Preprocess
from lsexp.models import evaluating

BATCH = {"cpu": 125, "cuda": 2000}
"""Images in a forward pass; fixed, since it may move the last bit of a logit.

On a CPU the convolutional networks are up to four times slower with 1000: their activations then
come fresh from the kernel, page by page.
"""


@torch.no_grad()
def logits_of(model: nn.Module, preprocess: Preprocess, images: Images) -> Tensor:
    """Logits float32 [N, K] on the device, in evaluation mode, images unaugmented."""
    return torch.cat([logits_BK for logits_BK, _ in passes(model, preprocess, images)])


@torch.no_grad()
def passes(
    model: nn.Module, preprocess: Preprocess, images: Images
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and features of all images, batch by batch, in evaluation mode, unaugmented."""
    with evaluating(model):
        for part in images.parts(BATCH[images.labels_N.device.type]):
            yield model(preprocess(part))


def accuracy_and_nll(logits_NK: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Accuracy (fraction) and mean negative log-likelihood of the hard labels (nats).

    Of classes that tie the first counts as predicted. Logits are to be finite: NLL is infinite
    where a label's is -inf, and NaN with NaN.
    """
    accuracy = (logits_NK.argmax(1) == labels_N).double().mean().item()
    return accuracy, F.cross_entropy(logits_NK.double(), labels_N).item()
