"""Train a recipe's network as most code does, and say how many images a second that is.

A `Dataset` of PIL images with torchvision's transforms of each sample, a `DataLoader` with worker
processes, float32, torch's own layers in their own memory format, torch's own local response
normalisation, `SGD` as it comes, and the loss and accuracy read (`.item()`) every step. Network,
batch, augmentation, loss, optimiser and schedule are the recipe's.

    python scripts/bench/conventional.py RECIPE [--seconds 10] [--threads N] [--loaders 2]

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lsexp import compose
from lsexp.config import TrainConfig
from lsexp.data import draw_splits, load
from lsexp.data.batches import input_shape
from lsexp.models import build_model
from lsexp.models.alexnet import LocalResponseNorm
from lsexp.training.optimizer import clip, parameter_groups, rate


class Pictures(Dataset):
    """Images in memory as PIL sees them, one at a time."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform
        self.to_pil = transforms.ToPILImage()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.to_pil(self.images[index])), int(self.labels[index])


def transform_of(config: TrainConfig, size: int):
    """The recipe's augmentation, one image at a time."""
    augment, steps = config.augment, []
    if augment.crop or augment.shift:
        steps.append(transforms.RandomCrop(augment.crop or size, padding=augment.shift or None))
    if augment.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if augment.brightness or augment.contrast:
        steps.append(
            transforms.ColorJitter(brightness=augment.brightness / 255, contrast=augment.contrast)
        )
    steps.append(transforms.ToTensor())
    if config.data.normalize == "image":
        steps.append(transforms.Lambda(lambda x: (x - x.mean()) / x.std().clamp_min(1e-3)))
    return transforms.Compose(steps)


def plain(model: nn.Module) -> nn.Module:
    """The network with torch's own normalisation, channels first."""
    for name, layer in list(model.named_children()):
        if isinstance(layer, LocalResponseNorm):
            setattr(model, name, nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1))
    return model.to(memory_format=torch.contiguous_format)


def measure(recipe: str, seconds: float, loaders: int) -> dict:
    started = time.monotonic()
    [(config, _)] = compose.train_configs([f"recipe={recipe}"])
    dataset = load(config.data, config.data_dir)
    splits = draw_splits(dataset, config.data)
    arrays = dataset.arrays
    shape = dataset.image_shape
    images, labels = arrays.train_images[splits.train], arrays.train_labels[splits.train]
    loader = DataLoader(
        Pictures(images, labels, transform_of(config, shape[0])),
        batch_size=config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=loaders,
    )
    rng = torch.Generator()
    model = plain(
        build_model(config.model, input_shape(shape, config.augment), dataset.num_classes, rng, rng)
    )
    optim = config.optim
    optimizer = torch.optim.SGD(
        parameter_groups(model, optim),
        lr=optim.lr,
        momentum=optim.momentum,
        dampening=optim.dampening,
        nesterov=optim.nesterov,
    )
    step, right, total, begun, at = 0, 0, 0.0, None, 0
    while True:
        for batch, targets in loader:
            logits, _ = model(batch)
            loss = F.cross_entropy(logits, targets, label_smoothing=config.loss.eps)
            optimizer.zero_grad()
            (loss * config.loss.scale).backward()
            clip(optimizer, optim)
            for group in optimizer.param_groups:
                group["lr"] = rate(optim, step, config.train.steps) * group["lr_scale"]
            optimizer.step()
            total += loss.item()
            right += (logits.argmax(1) == targets).sum().item()
            step += 1
            now = time.monotonic()
            if begun is None and step >= 3:  # the first steps allocate
                begun, at, startup = now, step, now - started
            if begun is not None and now - begun >= seconds and step > at:
                return {
                    "recipe": recipe,
                    "images_per_second": (step - at) * config.train.batch_size / (now - begun),
                    "startup_seconds": startup,
                    "threads": torch.get_num_threads(),
                    "loaders": loaders,
                    "loss": total / step,
                }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int, help="default: torch's own, one a core")
    parser.add_argument("--loaders", type=int, default=2, help="worker processes of the DataLoader")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    print(json.dumps(measure(given.recipe, given.seconds, given.loaders)))
