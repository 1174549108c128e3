"""The user's own networks and torchvision's: logits, features, head, source, errors."""

import copy
import importlib.util
import random
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from lsexp.config import CustomConfig, TorchvisionConfig
from lsexp.errors import UserError
from lsexp.models import build_model, evaluating
from lsexp.models.foreign import NetworkError, _sources, source_digest


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def images(count=4, shape=(12, 12, 3)):
    height, width, channels = shape
    return torch.randn(count, channels, height, width, generator=seeded(9))


SMALL = """
    from torch import nn

    class Small(nn.Module):
        def __init__(self, num_classes, width=8):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3, padding=1)
            self.hidden = nn.Linear(width, 6)
            self.out = nn.Linear(6, num_classes)

        def forward(self, x):
            x = self.conv(x).relu().mean((2, 3))
            return self.out(self.hidden(x).relu())
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module into a folder that Python is started in; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        forget()
        return path

    def forget():
        for name in set(sys.modules) - before:
            if not name.startswith(("torch", "lsexp", "numpy")):
                del sys.modules[name]

    yield write
    forget()


def custom(target, *, head=None, shape=(12, 12, 3), classes=5, seed=0, **args):
    config = CustomConfig(name="custom", target=target, args=args, head=head)
    return build_model(config, shape, classes, init=seeded(seed), dropout=seeded(1))


def torchvision(name, *, stem="small", shape=(12, 12, 3), classes=5, seed=0):
    config = TorchvisionConfig(name=name, stem=stem)
    return build_model(config, shape, classes, init=seeded(seed), dropout=seeded(1))


# Custom networks.


def test_a_module_gives_logits_and_the_input_of_its_last_linear_layer(write):
    write("own", SMALL)
    model = custom("own:Small")
    assert model.head_name == "out"
    logits, features = model(images())
    x = model.conv(images()).relu().mean((2, 3))
    expected = model.hidden(x).relu()
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits, model.out(expected))
    assert set(model.state_dict()) == {
        f"{layer}.{kind}" for layer in ("conv", "hidden", "out") for kind in ("weight", "bias")
    }


def test_features_carry_the_gradient_and_each_pass_has_its_own(write):
    write("own", SMALL)
    model = custom("own:Small")
    _, one = model(images()[:2])
    _, other = model(images()[2:])
    assert not torch.equal(one, other)
    one.sum().backward()
    assert model.conv.weight.grad.abs().sum() > 0


def test_arguments_reach_the_builder_and_the_image_shape_where_it_is_asked_for(write):
    write("own", SMALL)
    assert custom("own:Small", width=3).conv.weight.shape == (3, 3, 3, 3)
    write(
        "shaped",
        """
        from torch import nn

        def build(num_classes, image_shape):
            height, width, channels = image_shape
            return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, num_classes))
        """,
    )
    model = custom("shaped:build", shape=(4, 5, 1))
    assert model.head_name == "1"
    logits, features = model(images(shape=(4, 5, 1)))
    assert (logits.shape, features.shape) == ((4, 5), (4, 20))


def test_the_last_linear_layer_is_the_last_that_runs_not_the_last_that_is_written(write):
    write(
        "own",
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.final = nn.Linear(7, num_classes)
                self.first = nn.Linear(432, 7)

            def forward(self, x):
                return self.final(self.first(x.flatten(1)).relu())
        """,
    )
    model = custom("own:Net")
    assert model.head_name == "final"
    assert model(images())[1].shape == (4, 7)


@pytest.mark.parametrize("own", ["self.head = 'b'", "self.head = nn.Linear(5, 5)", "pass"])
def test_a_network_may_name_its_head(write, own):
    write(
        "own",
        f"""
        from torch import nn

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.a = nn.Linear(432, 7)
                self.b = nn.Linear(7, num_classes)
                {own}

            def forward(self, x):
                return self.b(self.a(x.flatten(1)))
        """,
    )
    assert custom("own:Net").head_name == "b"
    assert custom("own:Net", head="b").head_name == "b"
    with pytest.raises(UserError, match=r"model\.head=c names none of its linear layers \(a, b"):
        custom("own:Net", head="c")
    with pytest.raises(UserError, match="its output is not that of its linear layer a"):
        custom("own:Net", head="a")


def test_code_that_relies_on_the_order_in_memory_works(write):
    write(
        "own",
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
                self.fc = nn.Linear(400, num_classes)

            def forward(self, x):
                x = self.conv(x)
                return self.fc(x.view(x.size(0), -1))
        """,
    )
    model = custom("own:Net").train()
    x = images().contiguous(memory_format=torch.channels_last)
    logits, features = model(x)
    expected = nn.functional.conv2d(x, model.conv.weight, model.conv.bias).reshape(4, -1)
    torch.testing.assert_close(features, expected)
    logits.sum().backward()


def test_lazy_layers_are_made_and_drawn_from_the_seed(write):
    write(
        "own",
        """
        from torch import nn

        def build(num_classes):
            last = nn.LazyLinear(num_classes)
            return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), last)
        """,
    )
    model, same, other = custom("own:build"), custom("own:build"), custom("own:build", seed=1)
    assert model.head_name == "3"
    assert torch.equal(model[1].weight, same[1].weight)
    assert not torch.equal(model[1].weight, other[1].weight)


def test_the_seed_decides_what_is_drawn_of_any_generator_and_their_states_are_left(write):
    drawn = "self.scale = random.random() * np.random.rand()"
    text = SMALL.replace("super().__init__()", f"super().__init__()\n            {drawn}")
    write(
        "own",
        text.replace("    from torch", "    import random\n    import numpy as np\n    from torch"),
    )
    numbers = []
    for state in (1, 2):
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        numbers.append(custom("own:Small"))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    one, same = numbers
    other = custom("own:Small", seed=1)
    weights, again = one.state_dict(), same.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["conv.weight"], other.state_dict()["conv.weight"])
    assert one.scale == same.scale != other.scale


def broken(text):
    return textwrap.dedent(f"""
        import torch
        from torch import nn
        import torch.nn.functional as F

        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.fc = nn.Linear(432, num_classes)
                self.aux = nn.Linear(432, num_classes)

            def forward(self, x):
                {text}
        """)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return self.fc(x.flatten(1)).softmax(1)", "its output is not that of its linear layer"),
        ("return self.fc(x.flatten(1))[:, :3]", r"gives \[2, 3\]; it must give logits.*\[B, 5\]"),
        ("return x.flatten(1)[:, :5]", "runs no nn.Linear"),
        ("return (self.fc(x.flatten(1)), x)", "gives tuple; it must give logits"),
        ("return self.fc(x)", r"RuntimeError: mat1 and mat2.*own\.py:13\)"),
        ("return self.nothing(x)", r"AttributeError: .*own\.py:13\)"),
    ],
)
def test_a_network_that_cannot_be_used_is_told_in_one_line(write, text, message):
    write("own", broken(text))
    with pytest.raises(UserError, match=rf"^model\.target=own:Net: .*{message}") as caught:
        custom("own:Net")
    assert "\n" not in str(caught.value)


def test_a_network_that_gives_more_than_logits_in_training_is_told(write):
    write("own", broken("y = self.fc(x.flatten(1)); return (y, y) if self.training else y"))
    with pytest.raises(UserError, match="in training: gives tuple; it must give logits"):
        custom("own:Net")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return F.relu(self.fc(x.flatten(1)), inplace=True)", "its output is not that of its"),
        ("return self.fc(x.flatten(1)) * 1.0", "its output is not that of its linear layer fc"),
        ("assert not self.training; return self.fc(x.flatten(1))", "AssertionError"),
        ("return self.fc(x.flatten(1)).detach()", "has no weights to train"),
        ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
    ],
)
def test_what_would_come_out_in_training_is_told_at_once(write, text, message):
    write("own", broken(text))
    with pytest.raises(UserError, match=rf"^model\.target=own:Net.*: .*{message}"):
        custom("own:Net")


def test_a_head_that_is_called_by_keyword(write):
    write("own", broken("return self.fc(input=x.flatten(1))"))
    logits, features = custom("own:Net")(images())
    assert torch.equal(features, images().flatten(1))
    assert logits.shape == (4, 5)


def test_an_error_in_between_leaves_nothing_behind(write):
    write("own", broken("y = self.fc(x.flatten(1)); assert x.sum() != 0; return y"))
    model = custom("own:Net")
    with pytest.raises(NetworkError, match=r"own:Net: AssertionError"):
        model(torch.zeros(4, 3, 12, 12))
    assert torch.equal(model(images())[1], images().flatten(1))


def test_a_copy_of_a_network_computes_with_its_own_weights(write):
    write("own", SMALL)
    model = custom("own:Small")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not other(images())[0].any()
    assert model(images())[0].all()


def test_an_error_in_a_forward_pass_within_a_forward_pass_is_told_once(write):
    again = (
        "return self.forward(x[:1]) if len(x) > 2 else self.fc(x.flatten(1) / (len(x) - 1 or x[5]))"
    )
    write("own", broken(again))
    with pytest.raises(
        NetworkError, match=r"^model.target=own:Net: IndexError: [^:]*own.py:\d+\)$"
    ):
        custom("own:Net")(images())


def test_a_network_in_evaluation_mode_trains_but_its_frozen_layers_stay_so(write):
    more = """
        def built_for_evaluation(num_classes):
            return Small(num_classes).eval()

        def with_a_frozen_layer(num_classes):
            net = Small(num_classes)
            net.hidden.eval()
            return net
    """
    write("own", textwrap.dedent(SMALL) + textwrap.dedent(more))
    model = custom("own:built_for_evaluation")
    assert all(module.training for module in model.modules())
    model = custom("own:with_a_frozen_layer")
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [n for n, module in model.named_modules() if not module.training] == ["hidden"]


def test_arguments_that_are_the_datas_are_refused(write):
    write("own", SMALL)
    config = CustomConfig(target="own:Small", args={"num_classes": 3})
    with pytest.raises(UserError, match=r"^model\.args\.num_classes: is that of the data"):
        build_model(config, (12, 12, 3), 5, init=seeded(0), dropout=seeded(1))


def test_a_state_that_no_file_can_hold_is_refused(write):
    extra = "def get_extra_state(self):\n        return {}\n\n    def forward(self, x):"
    write("own", textwrap.dedent(SMALL).replace("def forward(self, x):", extra))
    with pytest.raises(UserError, match="its state _extra_state is no tensor"):
        custom("own:Small")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere:build", "no module nowhere; Python looks in "),
        ("own:nothing", "own has no function or class nothing"),
        ("own:NUMBER", "own has no function or class NUMBER"),
        ("own:gives_int", "gave a int; it must give a torch.nn.Module"),
        ("own:takes_nothing", r"TypeError: .*num_classes"),
        ("own:fails", r"ZeroDivisionError: division by zero \(.*own\.py:10\)"),
        ("needs:build", "no module absent_dependency"),
        ("wrong:build", "SyntaxError"),
    ],
)
def test_a_target_that_cannot_be_built_is_told_in_one_line(write, target, message):
    write(
        "own",
        """
        NUMBER = 3

        def gives_int(num_classes):
            return 3

        def takes_nothing():
            pass

        def fails(num_classes): return 1 / 0
        """,
    )
    write("needs", "import absent_dependency\n")
    write("wrong", "def build(:\n")
    with pytest.raises(UserError, match=rf"^model\.target={target}: .*{message}"):
        custom(target)


# The source in the identity.


def test_the_source_is_the_module_and_what_it_imports_from_beside_it(write):
    write("net.part", "WIDTH = 4\n")
    write("net.other", "UNUSED = 1\n")
    write("helper", "import torch\nfrom torch import nn\n")
    text = "import numpy\nfrom . import part\nimport helper\nbuild = helper.nn.Identity\n"
    write("net.main", text)
    write("net.__init__", "")
    digests = [source_digest("net.main:build")]
    assert digests[0] == source_digest("net.main:build")
    write("net.other", "UNUSED = 2\n")
    assert source_digest("net.main:build") == digests[0]
    for name, changed in (
        ("net.part", "WIDTH = 5\n"),
        ("helper", "import torch\nfrom torch import nn\nX = 1\n"),
        ("net.main", text + "# another\n"),
    ):
        write(name, changed)
        digests.append(source_digest("net.main:build"))
    assert len(set(digests)) == 4


def test_line_ends_and_the_folder_do_not_matter(write, tmp_path, monkeypatch):
    path = write("own", SMALL)
    digest = source_digest("own:Small")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert source_digest("own:Small") == digest
    moved = tmp_path / "elsewhere" / "own.py"
    moved.parent.mkdir()
    path.rename(moved)
    monkeypatch.chdir(moved.parent)
    monkeypatch.setattr(sys, "path", [str(moved.parent), *sys.path])
    del sys.modules["own"]
    assert source_digest("own:Small") == digest


def test_modules_of_python_itself_and_broken_or_relative_imports_are_passed_over(write):
    write(
        "own",
        """
        import os, sys, time, itertools, math
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            import runs_at_import
        try:
            from .layers import WIDTH
        except ImportError:
            from layers import WIDTH
        try:
            import does_not_parse
        except SyntaxError:
            pass

        def build(num_classes):
            pass
        """,
    )
    write("layers", "WIDTH = 3\n")
    write("does_not_parse", "def (:\n")
    write("runs_at_import", "raise SystemExit('was run')\n")
    before = source_digest("own:build")
    write("layers", "WIDTH = 4\n")
    assert source_digest("own:build") != before


def test_packages_around_the_target_and_namespace_packages_count(write, tmp_path, monkeypatch):
    write("pkg.__init__", "X = 1\n")
    write("pkg.net", "def build(num_classes): pass\n")
    one = source_digest("pkg.net:build")
    write("pkg.__init__", "X = 2\n")
    assert source_digest("pkg.net:build") != one

    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "other")])
    write("spread.here", "")
    write("other.spread.there", "def build(num_classes): pass\n")
    one = source_digest("spread.there:build")
    write("other.spread.there", "def build(num_classes): return 1\n")
    assert source_digest("spread.there:build") != one


def test_a_module_behind_a_link_counts_with_what_lies_beside_the_link(write, tmp_path):
    write("real.net", "import layers\ndef build(num_classes): pass\n")
    write("layers", "WIDTH = 3\n")
    (tmp_path / "net.py").symlink_to(tmp_path / "real" / "net.py")
    one = source_digest("net:build")
    write("layers", "WIDTH = 4\n")
    two = source_digest("net:build")
    write("real.net", "import layers\ndef build(num_classes): return 1\n")
    assert len({one, two, source_digest("net:build")}) == 3


def test_of_an_installed_package_only_itself_counts():
    found = _sources("sklearn._config", importlib.util.find_spec("sklearn"))
    assert set(found) >= {"sklearn", "sklearn._config"}
    assert {name.partition(".")[0] for name in found} == {"sklearn"}


def test_a_target_without_a_source_is_refused():
    with pytest.raises(UserError, match=r"^model\.target=sys:exit: the source of sys cannot be"):
        source_digest("sys:exit")


# torchvision.


def test_resnet18_with_a_small_stem_keeps_the_resolution():
    model = torchvision("resnet18", shape=(32, 32, 3))
    assert model.head_name == "fc"
    sizes = []
    model.layer1.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape)))
    logits, features = model(images(2, (32, 32, 3)))
    assert sizes == [(2, 64, 32, 32)]
    assert (logits.shape, features.shape) == ((2, 5), (2, 512))
    assert torch.equal(logits, model.fc(features))
    stem = model.conv1.weight
    # He's normal over the outputs of a filter: 64 filters of 3 x 3.
    assert stem.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_the_published_stem_is_torchvisions_network_as_it_is():
    from torchvision.models import resnet18

    model, theirs = torchvision("resnet18", stem="imagenet"), resnet18(num_classes=5).eval()
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images())[0], theirs(images()))


@pytest.mark.parametrize("name", ["vgg11", "mobilenet_v3_small", "densenet121", "squeezenet1_0"])
def test_other_families(name):
    if name == "squeezenet1_0":  # ends in a convolution
        with pytest.raises(UserError, match=f"model.name={name}: runs no nn.Linear"):
            torchvision(name, shape=(32, 32, 3))
        return
    model = torchvision(name, shape=(32, 32, 3))
    logits, features = model(images(2, (32, 32, 3)))
    assert logits.shape == (2, 5)
    assert features.shape == (2, model.get_submodule(model.head_name).in_features)


def test_grey_images_get_a_first_convolution_of_their_own():
    model = torchvision("resnet18", stem="imagenet", shape=(32, 32, 1))
    assert model.conv1.weight.shape == (64, 1, 7, 7)
    assert model(images(2, (32, 32, 1)))[0].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("alexnet", "features.2"),
        ("densenet121", "features.pool0"),
        ("shufflenet_v2_x0_5", "maxpool"),
        ("mobilenet_v3_small", None),
    ],
)
def test_a_small_stem_has_stride_1_and_no_pooling_behind_it(name, gone):
    model = torchvision(name, shape=(64, 64, 3))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    with torch.device("meta"):  # its names alone are looked at
        theirs = importlib.import_module("torchvision.models").get_model(name, num_classes=5)
    pools = [n for n, m in theirs.named_modules() if isinstance(m, nn.MaxPool2d)]
    left = [n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)]
    assert left == [n for n in pools if n != gone]


def test_a_network_that_torchvision_lacks_or_that_cannot_take_the_images():
    with pytest.raises(UserError, match=r"model\.name=resnet19: .* it has resnet18, "):
        torchvision("resnet19")
    with pytest.raises(UserError, match=r"model\.name=vit_b_16: AssertionError: Wrong image"):
        torchvision("vit_b_16", stem="imagenet", shape=(32, 32, 3))
    with pytest.raises(UserError, match=r"model\.stem=small: .* begins with patches of 4 x 4"):
        torchvision("convnext_tiny")
