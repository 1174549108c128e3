"""Networks that are not of the paper: torchvision's classifiers, and the user's own.

Their forward gives logits alone; hooks make that (logits, features), so that the names of their
weights stay theirs. Their layers draw from torch's own generator, Python's or NumPy's: these are
seeded here while they are built, and by training before each step.
Shape letters: B examples, D features, K classes.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lsexp.config import CustomConfig, TorchvisionConfig
from lsexp.errors import NOT_OURS, UserError, no_memory, torchvision

INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders that packages are installed into."""
PLAIN = {"aux_logits": False, "init_weights": True}
EXTRAS = {"googlenet": PLAIN, "inception_v3": PLAIN}
"""Arguments without which a builder of torchvision gives no plain classifier."""


class NetworkError(UserError):
    """A network raised its cause in a forward pass, of training or of evaluation."""


def seed_generators(seed: int) -> None:
    """Seed those that code of the user's may draw from: torch's own, Python's and NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def torchvision_classifier(
    config: TorchvisionConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    init: torch.Generator,
) -> nn.Module:
    """`torchvision.models.<name>` with K classes, untrained.

    Raises:
        UserError: no such classifier, no stem that could be small, or it cannot take such images.
    """
    models = torchvision("models")
    names = models.list_models(module=models)
    if config.name not in names:
        close = difflib.get_close_matches(config.name, names, n=5, cutoff=0.4)
        raise UserError(
            f"model.name={config.name}: torchvision has no such classifier; it has "
            f"{', '.join(close or names)}{', ...' if close else ''}"
        )
    what = f"model.name={config.name}"
    with _seeded(init), _explained(what):
        net = models.get_model(
            config.name, weights=None, num_classes=num_classes, **EXTRAS.get(config.name, {})
        )
        _fit_stem(net, what, image_shape[2], small=config.stem == "small")
    return with_features(net, what, image_shape, num_classes, init)


def _fit_stem(net: nn.Module, what: str, channels: int, *, small: bool) -> None:
    """Replace the first convolution where the images or `model.stem` ask for another."""
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
    name, conv = next((n, m) for n, m in layers if isinstance(m, nn.Conv2d))
    kernel: Any = conv.kernel_size
    stride: Any = conv.stride
    padding: Any = conv.padding
    if small:
        if kernel == stride:  # patches
            raise UserError(
                f"model.stem=small: {what} begins with patches of {kernel[0]} x {kernel[1]} "
                f"pixels, which have no small variant; model.stem=imagenet"
            )
        kernel, stride, padding = (3, 3), (1, 1), (1, 1)
        behind, layer = layers[layers.index((name, conv)) + 1]
        if isinstance(layer, nn.MaxPool2d):
            net.set_submodule(behind, nn.Identity())
    if (conv.in_channels, conv.kernel_size, conv.stride) == (channels, kernel, stride):
        return
    own = nn.Conv2d(
        channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None
    )
    nn.init.kaiming_normal_(own.weight, mode="fan_out", nonlinearity="relu")
    if own.bias is not None:
        nn.init.zeros_(own.bias)
    net.set_submodule(name, own)


def custom(
    config: CustomConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    init: torch.Generator,
) -> nn.Module:
    """What `model.target` builds.

    Raises:
        UserError: it cannot be imported or called, raises, or gives no network of K logits.
    """
    what = f"model.target={config.target}"
    build = _target(config.target)
    for name in ("num_classes", "image_shape"):
        if name in config.args:
            raise UserError(f"model.args.{name}: is that of the data; it cannot be set")
    arguments: dict[str, Any] = {**config.args, "num_classes": num_classes}
    with contextlib.suppress(ValueError, TypeError):  # no signature to be had
        if "image_shape" in inspect.signature(build).parameters:
            arguments["image_shape"] = image_shape
    with _seeded(init), _explained(what):
        net = build(**arguments)
    if not isinstance(net, nn.Module):
        raise UserError(f"{what}: gave a {type(net).__name__}; it must give a torch.nn.Module")
    if not net.training:  # a layer of it that is in evaluation mode stays so
        net.train()
    return with_features(net, what, image_shape, num_classes, init, config.head)


def _target(target: str) -> Callable[..., Any]:
    module_name, _, name = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with _explained(f"model.target={target}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"model.target={target}: no module {error.name}; Python looks in {Path.cwd()}, "
                f"PYTHONPATH and what is installed"
            ) from error
    build = getattr(module, name, None)
    if not callable(build):
        raise UserError(f"model.target={target}: {module_name} has no function or class {name}")
    return build


def source_digest(target: str) -> str:
    """SHA-256 (hex) of the sources behind `model.target`: its module and what that imports.

    Of the imports those count that come from where the module does: from below the same folder,
    or of an installed package from itself. Other packages, such as torch, stand in no identity.
    Nothing is run to find them: what is imported nowhere but in code that was not reached counts
    too.

    Raises:
        UserError: there is no source to be read.
    """
    module_name = target.partition(":")[0]
    _target(target)
    top = importlib.util.find_spec(module_name.partition(".")[0])
    found = {} if top is None else _sources(module_name, top)
    if module_name not in found:
        raise UserError(
            f"model.target={target}: the source of {module_name} cannot be found; it must be in a "
            f"file, since runs are named by it"
        )
    whole = hashlib.sha256()
    for name, file in sorted(found.items()):
        content = file.read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def _sources(module_name: str, top: ModuleSpec) -> dict[str, Path]:
    """Module to file, of `module_name`, the packages that it is in, and what they import."""
    places = list(top.submodule_search_locations or [top.origin or "."])
    homes = []
    for place in map(Path, places):
        alone = place.parent.name in INSTALLED  # of an installed package, itself only
        homes.append(place if alone else place.parent)

    def ours(file: Path) -> bool:
        for home in homes:
            if file.is_relative_to(home):
                return not INSTALLED & set(file.relative_to(home).parts)
        return False

    folders: dict[str, list[str]] = {}  # of the packages among them; [] for anything else
    files: dict[str, Path] = {}
    left = deque(_parents_first(module_name))
    while left:
        name = left.popleft()
        if name in folders:
            continue
        parent, _, last = name.rpartition(".")
        folders[name] = []
        above = folders.get(parent, [])
        if parent and not above:
            continue
        spec = None
        with contextlib.suppress(ValueError, KeyError):  # KeyError: as below
            spec = PathFinder.find_spec(name, above) if parent else importlib.util.find_spec(name)
        if spec is not None and spec.has_location and spec.origin is not None:
            file = Path(spec.origin)
            if ours(file):
                files[name] = file
                folders[name] = list(spec.submodule_search_locations or [])
                if file.suffix == ".py":
                    left += _imports(file.read_bytes(), name if folders[name] else parent)
        elif parent:  # perhaps a package without a file; Python tells of it once it is imported
            there = [Path(place) / last for place in above]
            folders[name] = [str(place) for place in there if place.is_dir()]
        elif spec is not None:
            places = list(spec.submodule_search_locations or [])
            folders[name] = [place for place in places if ours(Path(place) / "any")]
    return files


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Dotted names that a source may import, wherever in it, parents first.

    >>> list(_imports(b"from .a import b", "net"))
    ['net', 'net.a', 'net.a.b']
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # imported by nothing that works
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):  # relative, and not in a package
                relative = "." * node.level + (node.module or "")
                base = importlib.util.resolve_name(relative, package)
                names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            yield from _parents_first(name)


def _parents_first(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def with_features(
    net: nn.Module,
    what: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    init: torch.Generator,
    head: str | None = None,
) -> nn.Module:
    """Make `net` return (logits_BK, features_BD) and name its head, in place.

    The head is the linear layer named `head`, or by the network's own attribute `head`, else the
    last `nn.Linear` that a forward pass runs; what it gives must be what the network gives.

    Args:
        what: how messages call the network.
    """
    own = getattr(net, "head", None)
    named = head if head is not None else own if isinstance(own, str) else None
    linear = {name: m for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    if named is not None and named not in linear:
        raise UserError(
            f"{what}: model.head={named} names none of its linear layers "
            f"({', '.join(linear) or 'there are none'})"
        )
    height, width, channels = image_shape
    images = torch.randn(2, channels, height, width, generator=_copy(init))
    runs: list[tuple[str, Tensor, int]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: runs.append((name, output, output._version))

    hooks = [module.register_forward_hook(note(name)) for name, module in linear.items()]
    with _seeded(init), torch.no_grad(), evaluating(net), _explained(what):
        logits = net(images)  # lazy layers get their shapes here
        runs.clear()
        try:  # about twice as fast, but there is code that relies on the other order in memory
            net.to(memory_format=torch.channels_last)
            logits = net(images.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            runs.clear()
            net.to(memory_format=torch.contiguous_format)
            logits = net(images)
            net.register_forward_pre_hook(lambda _m, inputs: (inputs[0].contiguous(),))
    for hook in hooks:
        hook.remove()
    _check_logits(logits, what, num_classes)
    runs = [run for run in runs if named in (None, run[0])]
    if not runs:
        raise UserError(f"{what}: runs no nn.Linear; the last layer must be one")
    name, output, version = runs[-1]
    if (output.data_ptr(), output.shape) != (logits.data_ptr(), logits.shape) or (
        version != output._version
    ):
        raise UserError(
            f"{what}: its output is not that of its linear layer {name}; lsexp needs the logits, "
            f"so nothing (a softmax, say) may follow that layer"
        )
    _check_training(net, what, images, num_classes, init)
    _hook(net, linear[name], what, num_classes)
    net.__dict__["head_name"] = name
    return net


def _check_logits(logits: Any, what: str, num_classes: int) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{what}: gives {shape}; it must give logits of shape [B, {num_classes}], one a class"
        )


def _check_training(
    net: nn.Module, what: str, images: Tensor, num_classes: int, init: torch.Generator
) -> None:
    """A step of a copy in training mode, so that what cannot be trained is told at once."""
    with _seeded(init), _explained(what):
        copy = deepcopy(net)
        logits = copy(images)
        _check_logits(logits, f"{what} in training", num_classes)
        if not logits.requires_grad:
            raise UserError(f"{what}: has no weights to train; all are frozen or cut off")
        logits.sum().backward()
    odd = [name for name, value in net.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{what}: its state {odd[0]} is no tensor and cannot be kept in a file")


def _hook(net: nn.Module, head: nn.Module, what: str, num_classes: int) -> None:
    """What `net` returns becomes (logits, features), features being what `head` took in."""
    taken: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        taken.append(inputs[0] if inputs else named["input"])

    def both(_module: nn.Module, _inputs: Any, logits: Any) -> tuple[Tensor, Tensor]:
        _check_logits(logits, what, num_classes)
        if not taken:
            raise UserError(f"{what}: did not run its head this time, as it did when it was built")
        features = taken[-1]
        taken.clear()
        return logits, features

    _tell_errors(net, what)
    net.register_forward_pre_hook(lambda _module, _inputs: taken.clear())
    head.register_forward_pre_hook(keep, with_kwargs=True)
    net.register_forward_hook(both)


def _tell_errors(net: nn.Module, what: str) -> None:
    """Have errors of its forward pass told as `_explained`, but for what is the machine's fault."""
    own = net.__dict__.get("forward")

    def told(self: nn.Module, *images: Any, **named: Any) -> Any:
        try:
            return own(*images, **named) if own else type(self).forward(self, *images, **named)
        except UserError:
            raise
        except Exception as error:
            ours = no_memory(error) is None and not isinstance(error, torch.AcceleratorError)
            if ours and not (isinstance(error, OSError) and error.errno in NOT_OURS):
                raise NetworkError(f"{what}: {_words(error)}", exit_code=1) from error
            raise

    net.forward = MethodType(told, net)  # which a copy of the network has of its own


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """`net` in evaluation mode; afterwards each of its modules is in the mode that it was in."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _copy(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())


@contextlib.contextmanager
def _seeded(init: torch.Generator) -> Iterator[None]:
    """`seed_generators` as `init` was; afterwards they are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            seed_generators(init.initial_seed())
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of code that is not ours in one line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    """What an error says, and the place in code that is neither ours nor torch's."""
    ours = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
