"""Networks that are not of the paper: torchvision's classifiers, and the user's own.

Their forward gives logits alone; hooks make that (logits, features), so that the names of their
weights stay theirs. Their layers draw from torch's own generator: it is seeded here while they
are built, and by training before each step.
Shape letters: B examples, D features, K classes.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsexp.config import CustomConfig, TorchvisionConfig
from lsexp.errors import UserError, torchvision

PLAIN = {"aux_logits": False, "init_weights": True}
EXTRAS = {"googlenet": PLAIN, "inception_v3": PLAIN}
"""Arguments without which a builder of torchvision gives no plain classifier."""


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
    name, conv = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if not small and conv.in_channels == channels:
        return
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
    own = nn.Conv2d(
        channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None
    )
    nn.init.kaiming_normal_(own.weight, mode="fan_out", nonlinearity="relu")
    if own.bias is not None:
        nn.init.zeros_(own.bias)
    net.set_submodule(name, own)
    pools = [n for n, _ in net.named_modules() if n in ("maxpool", "maxpool1", "features.pool0")]
    if small and pools:
        net.set_submodule(pools[0], nn.Identity())


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
    arguments: dict[str, Any] = {**config.args, "num_classes": num_classes}
    with contextlib.suppress(ValueError, TypeError):  # no signature to be had
        if "image_shape" in inspect.signature(build).parameters:
            arguments["image_shape"] = image_shape
    with _seeded(init), _explained(what):
        net = build(**arguments)
    if not isinstance(net, nn.Module):
        raise UserError(f"{what}: gave a {type(net).__name__}; it must give a torch.nn.Module")
    return with_features(net, what, image_shape, num_classes, init, config.head)


def _target(target: str) -> Callable[..., Any]:
    module_name, _, name = target.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        with _explained(f"model.target={target}"):
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
    """
    module_name = target.partition(":")[0]
    _target(target)
    top = sys.modules[module_name.partition(".")[0]]
    kinds = ("purelib", "platlib", "stdlib")
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in kinds]
    package = [Path(place).resolve() for place in getattr(top, "__path__", [])]
    home = package[0] if package else Path(str(top.__file__)).resolve()
    if home.parent not in installed:
        home = home.parent

    def ours(file: Path) -> bool:
        if not file.is_relative_to(home):
            return False
        return not any(p.is_relative_to(home) and file.is_relative_to(p) for p in installed)

    files: dict[str, Path] = {}
    left = [module_name]
    while left:
        name = left.pop()
        spec = None
        if name not in files:
            with contextlib.suppress(Exception):  # not a module, or one that is not there
                spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not ours(Path(spec.origin).resolve()):
            continue
        files[name] = Path(spec.origin)
        if files[name].suffix == ".py":
            left += _imports(files[name].read_bytes(), str(spec.parent))
    whole = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes().replace(b"\r\n", b"\n")
        whole.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Dotted names that a source may import, wherever in it, parents first.

    >>> list(_imports(b"from .a import b", "net"))
    ['net', 'net.a', 'net.a.b']
    """
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


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
    runs: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _inputs, output, name=name: runs.append((name, output))
        )
        for name, module in linear.items()
    ]
    training = net.training
    net.eval()
    with _seeded(init), torch.no_grad(), _explained(what):
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
    net.train(training)
    for hook in hooks:
        hook.remove()
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{what}: gives {shape} for two images; it must give logits of shape "
            f"[2, {num_classes}], one a class"
        )
    runs = [run for run in runs if named in (None, run[0])]
    if not runs:
        raise UserError(f"{what}: runs no nn.Linear; the last layer must be one")
    name, output = runs[-1]
    if output.shape != logits.shape or not torch.equal(output, logits):
        raise UserError(
            f"{what}: its output is not that of its linear layer {name}; lsexp needs the logits, "
            f"so nothing (a softmax, say) may follow that layer"
        )
    _hook(net, linear[name], what)
    net.__dict__["head_name"] = name
    return net


def _hook(net: nn.Module, head: nn.Module, what: str) -> None:
    """What `net` returns becomes (logits, features), features being what `head` took in."""
    taken: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        taken[:] = inputs[:1]

    def both(_module: nn.Module, _inputs: Any, logits: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{what}: gives a {type(logits).__name__} in training; it must give logits"
            )
        return logits, taken.pop()

    head.register_forward_pre_hook(keep)
    net.register_forward_hook(both)


def _copy(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())


@contextlib.contextmanager
def _seeded(init: torch.Generator) -> Iterator[None]:
    """torch's own generator, seeded as `init` was; as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init.initial_seed())
        yield


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Errors of code that is not ours in one line, with the place in it."""
    try:
        yield
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        ours = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<")
        frames = traceback.extract_tb(error.__traceback__)
        theirs = [frame for frame in frames if not frame.filename.startswith(ours)]
        where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
        reason = " ".join(str(error).split())
        raise UserError(f"{what}: {type(error).__name__}: {reason}{where}") from error
