"""Networks other than the recipe's, end to end: trained, interrupted, named by their source."""

import json
import re
import textwrap
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from support import TINY, history, lsexp, weights

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
NETWORK = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes, image_shape, width=8):
            super().__init__()
            self.conv = nn.Conv2d(image_shape[2], width, 3, padding=1)
            self.norm = nn.BatchNorm2d(width)
            self.drop = nn.Dropout(0.4)
            self.out = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.out(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))
"""


def train(cwd, *words, code=0):
    """The folder of a run of the command in a process of its own."""
    done = lsexp("train", *TINY, "runs_dir=runs", *words, cwd=cwd)
    assert done.returncode == code, done.stderr
    return cwd / done.stdout.splitlines()[-1] if code == 0 else done.stderr


def write(folder, text=NETWORK, name="own.py"):
    (folder / name).write_text(textwrap.dedent(text))


@pytest.mark.parametrize(
    ("words", "name", "head"),
    [
        (["model=alexnet", "optim.decay=[fc1.weight,fc2.weight]"], "alexnet", "fc3"),
        (["model=resnet56", "model.depth=8", "model.widths=[4,4,4]"], "resnet8", "fc"),
        (["model=resnet56_thin", "model.depth=8"], "resnet8_thin", "fc"),
        (["model=torchvision", "model.name=shufflenet_v2_x0_5"], "shufflenet_v2_x0_5", "fc"),
    ],
)
def test_a_network_can_be_chosen_against_the_recipe(tmp_path, words, name, head):
    folder = train(tmp_path, *words, "augment.crop=7", "augment.flip=true", "train.steps=4")
    assert folder.name.startswith(f"digits-{name}-eps0-seed0-")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["config"]["model.name"] == name
    assert f"{head}.weight" in load_file(folder / "model.safetensors")


NOISY = NETWORK.replace(
    "    from torch import nn",
    """    import random
    import numpy as np
    from torch import nn""",
).replace(
    "def forward(self, x):",
    "def forward(self, x):\n            if self.training:\n"
    "                x = x * (1 + random.random()) + np.random.rand()",
)


def test_a_network_of_ones_own_goes_on_as_if_undisturbed(tmp_path):
    """Dropout, running statistics, and what it draws of Python's and NumPy's numbers included."""
    write(tmp_path, NOISY)
    words = ["model=custom", "model.target=own:Net", "model.args.width=6", "train.steps=300"]
    undisturbed = train(tmp_path, *words)
    files = weights(undisturbed)
    expected = history(undisturbed)

    again = tmp_path / "again"
    again.mkdir()
    write(again, NOISY)
    slow = ["artifacts.checkpoint_seconds=0"]
    process = lsexp("train", *TINY, "runs_dir=runs", *words, *slow, cwd=again, start=True)
    while not list(again.glob("runs/*/attempt-*/checkpoint.pt")) and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    resumed = train(again, *words)
    assert resumed.name == undisturbed.name
    assert weights(resumed) == files
    assert history(resumed) == expected


def test_another_source_is_another_run(tmp_path):
    words = ["model=custom", "model.target=own:Net", "train.steps=2"]
    write(tmp_path)
    one = train(tmp_path, *words)
    write(tmp_path, NETWORK.replace("0.4", "0.3"))
    other = train(tmp_path, *words)
    assert one != other
    sources = {
        json.loads((folder / "metrics.json").read_text())["identity"]["model.source"]
        for folder in (one, other)
    }
    assert len(sources) == 2


def test_an_error_in_ones_own_network_is_one_line_with_its_place(tmp_path):
    write(tmp_path, NETWORK.replace("self.drop(", "self.dorp("))
    message = train(tmp_path, "model=custom", "model.target=own:Net", code=2)
    assert re.fullmatch(r"lsexp: model\.target=own:Net: AttributeError: .*own\.py:13\)\n", message)
    assert not (tmp_path / "runs").exists()


def test_a_network_that_ends_the_process_is_told(tmp_path):
    write(tmp_path, NETWORK + "\n    import sys; sys.exit(0)\n")
    message = train(tmp_path, "model=custom", "model.target=own:Net", code=2)
    assert message.startswith("lsexp: model.target=own:Net: SystemExit: 0 (")


def test_a_network_that_raises_in_training_is_told_and_its_traceback_kept(tmp_path):
    """An OSError too, which is the machine's fault elsewhere."""
    opening = (
        "def forward(self, x):\n            self.training and len(x) == 64 and open('nowhere')"
    )
    write(tmp_path, NETWORK.replace("def forward(self, x):", opening))
    words = [*TINY, "model=custom", "model.target=own:Net"]
    told = r"model\.target=own:Net: FileNotFoundError: .*'nowhere' \(.*own\.py:13\)"
    done = lsexp("train", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(f"lsexp: .*{told}; .*retry_failed=true.*", done.stderr.splitlines()[-1])
    [path] = tmp_path.glob("runs/*/failure.json")
    failure = json.loads(path.read_text())
    assert failure["error"].startswith("FileNotFoundError: ")
    assert "Traceback" in failure["traceback"]
    full = NETWORK.replace(
        "def forward(self, x):",
        """def forward(self, x):
            if self.training and len(x) == 64:
                raise OSError(28, "No space left on device")""",
    )
    write(tmp_path, full, "full.py")  # the machine's fault, and no failure of the run
    done = lsexp("train", *words[:-1], "model.target=full:Net", "runs_dir=full", cwd=tmp_path)
    assert done.returncode == 1
    assert "No space left on device; once that is mended, the same command" in done.stderr
    assert not list(tmp_path.glob("full/*/failure.json"))
    for command in (["train", "--dry-run"], ["sweep", "eps", "eps=0", "seeds=1", "workers=1"]):
        done = lsexp(*command, *words, "runs_dir=other", cwd=tmp_path)
        assert done.returncode == 1
        assert re.fullmatch(f"lsexp: {told}\n", done.stderr), done.stderr
    assert not (tmp_path / "other").exists()


def blocks(text):
    """The indented blocks of a Markdown text."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, flags=re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]


def test_the_readmes_network_and_recipe_work_as_they_are_printed(tmp_path):
    [network] = [block for block in blocks(README) if block.startswith("# mynet.py")]
    [recipe] = [block for block in blocks(README) if "_mine.yaml" in block.splitlines()[0]]
    path = tmp_path / recipe.splitlines()[0].removeprefix("# ")
    path.parent.mkdir(parents=True)
    path.write_text(recipe.split("\n", 1)[1])
    (tmp_path / "mynet.py").write_text(network)
    assert len(network.splitlines()) <= 16
    words = ["model=custom", "model.target=mynet:build", "train.steps=20"]
    assert train(tmp_path, *words).name.startswith("digits-custom-")
    flags = ["--config-dir", str(path.parents[1])]
    done = lsexp("train", *flags, f"recipe={path.stem}", "--dry-run", "data=digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "digits-mynet-eps0-" in done.stdout
