"""The report: what it says, that it says it safely, and that a browser shows it."""

import html.parser
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from support import change_metrics, lsexp, names

from lsexp import files
from lsexp.cli import main
from lsexp.report import content
from lsexp.report.content import Drawn, Judged, OfRecipe, Section, Table, _ran, _reduced
from lsexp.report.pages import as_html, as_markdown
from lsexp.studies import Claim, Result, untested
from lsexp.sweep.command import Job

BAD = "<script>alert(1)</script>|`*_[x](y)&"
SVG = '<svg viewBox="0 0 10 10"><path id="a" d="M0 0"/></svg>'
CLAIM = Judged(
    "supported",
    "it helps",
    "Table 2",
    "a minus b",
    "above 0 points",
    "+1 [+0.5, +1.5] points (n = 10)",
    "+0.6",
    "",
    "",
    "yes",
)
PART = OfRecipe(
    "mine",
    "mine, budget cpu",
    "A network.",
    Table(["eps", "accuracy"], [["0.1", "98.2 +- 0.1"], ["", "97"], ["0", "1,000"], ["0.05", "3"]]),
    ["+- half of the interval"],
    [CLAIM, CLAIM._replace(verdict="not tested", because="no gate", disputed_by="Shen")],
    Table(["what", "runs"], [["mine", "3"]]),
    "Reduced: mine: 10 of the paper's 100 steps.",
    "1 of 3 runs missing: eps=0 seed=2; lsexp sweep eps trains them",
)
SECTION = Section(
    "eps",
    "Table 2: accuracy",
    "eps-mine",
    "lsexp sweep eps recipe=mine",
    "optim.lr=2",
    [Drawn("eps-mine-eps", SVG, "Table 2. mine", "Read it so.")],
    [PART],
)


class Checked(html.parser.HTMLParser):
    """Elements that are open, identifiers, and text outside scripts, styles and figures."""

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.text, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not {"script", "style", "svg"} & set(self.stack):
            self.text.append(data)


def parsed(page):
    found = Checked()
    found.feed(page)
    assert found.stack == []
    assert len(found.ids) == len(set(found.ids))
    return found, " ".join(" ".join(found.text).split())


def test_the_page_says_all_there_is():
    page = as_html([SECTION], "lsexp report", ["of another"])
    found, text = parsed(page)
    for words in (
        "where the paper has it: 1 supported, 0 contradicted, 0 inconclusive, 1 not tested",
        "98.2 ± 0.1",
        "not tested (no gate): it helps",
        "disputed by Shen",
        "the paper: +0.6",
        "1 of 3 runs missing: eps=0 seed=2",
        "Reduced: mine: 10 of the paper's 100 steps.",
        "a minus b, to be above 0 points: +1",
        "Not drawn: of another",
        "lsexp sweep eps recipe=mine",
        "Read it so.",
        "With optim.lr=2 .",
        "mine optim.lr=2 +1 [+0.5",
    ):
        assert words in text
    assert 'aria-label="Table 2. mine"' in page
    assert not re.search(r'(src|href)="(?!#|data:|https://arxiv)', page)  # needs nothing else
    assert found.tags.count("svg") == 1


def test_whose_network_a_verdict_is_of():
    claim = Claim("a", "b", "c", "d", "above")
    kinds = [
        ("eps", "cifar10_alexnet", None),
        ("calibration", "cifar10_alexnet", None),
        ("eps", "digits_mlp", None),
        ("distillation", "mnist_toy", None),
        ("distillation", "mnist_toy", -0.0017),
    ]
    found = [
        content.whose(
            study,
            Result(recipe, {}, [], papers=recipe != "digits_mlp"),
            untested(claim, paper, ""),
        )
        for study, recipe, paper in kinds
    ]
    assert found == ["yes", "of another place", "no", "of another place", "yes"]
    parts = [replace(PART, claims=[CLAIM._replace(whose=whose)]) for whose in found[:3]]
    page = as_html([replace(SECTION, recipes=parts)], "lsexp report")
    _, text = parsed(page)
    for words in content.WHOSE.values():
        assert f"{words}: 1 supported" in text
    assert "None of these networks" not in text
    alone = as_markdown([replace(SECTION, recipes=[parts[2]])], "lsexp report")
    assert "None of these networks is the paper's." in alone


def test_markdown_says_the_same():
    text = as_markdown([SECTION], "lsexp report")
    assert "![Table 2. mine](figures/eps-mine-eps.svg)" in text
    assert "| 0.1 | 98.2 ± 0.1 |" in text
    assert "✓ **supported**: it helps (Table 2). a minus b, to be above 0 points: +1" in text
    assert "\n\n\n" not in text


def test_what_is_shown_is_escaped():
    part = replace(
        PART,
        recipe=BAD,
        title=BAD,
        about=BAD,
        table=Table([BAD], [[BAD]]),
        notes=[BAD],
        claims=[CLAIM._replace(text=BAD, estimate=BAD, because=BAD, disputed_by=BAD)],
        ran=Table([BAD], [[BAD]]),
        reduced=BAD,
        missing=BAD,
    )
    figure = SECTION.figures[0]._replace(alt='"><script>alert(1)</script>', reading=BAD)
    section = replace(
        SECTION, title=BAD, command=BAD, typed=BAD, figures=[figure], recipes=[part, part]
    )
    page = as_html([section], BAD)
    found, text = parsed(page)
    assert found.tags.count("script") == 1
    assert text.count("<script>alert(1)</script>") > 10
    markdown = as_markdown([section], BAD, [BAD])
    assert markdown.count(f"`` {BAD} ``") == 3  # as code, which ends where it should
    prose = markdown.replace(f"`` {BAD} ``", "")
    assert "<script>" not in prose
    for line in prose.splitlines():
        if line.startswith("|"):  # a bar would be another cell
            assert len(re.findall(r"(?<!\\)\|", line)) in (2, 8)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A folder in which all studies were reproduced, and what was printed."""
    cwd = tmp_path_factory.mktemp("reproduced")
    done = lsexp("reproduce", *WORDS, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd, done


WORDS = ["budget=smoke", "eps=0,0.1", "seeds=1", "temperatures=1", "snapshots=3", "workers=2"]
WORDS += ["artifacts.tensorboard=false"]
REPORT = "out/reproduce-budget=smoke-eps=0,0.1-seeds=1-temperatures=1-snapshots=3"
"""Where their report goes: not over one of all that has been swept."""


def test_reproduce_trains_each_run_once_and_writes_the_report(reproduced):
    cwd, done = reproduced
    # eps 2 (which are teachers too), information 2, students without a teacher 2, with one 2
    assert "8 runs: 0 finished, 8 to do" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2:] == [f"{REPORT}/report.html", f"{REPORT}/report.md"]
    page = (cwd / REPORT / "report.html").read_text()
    _, text = parsed(page)
    for title in ("Table 2:", "Figure 1:", "Table 3, Figure 2:", "Figure 5:", "Figure 6:"):
        assert title in text
    assert "Reduced:" not in text  # the digits have no paper
    figures = names(cwd / REPORT / "figures")
    assert figures >= {
        "eps-digits-mlp-smoke-eps.svg",
        "calibration-digits-mlp-smoke-risk_coverage.svg",
        "information-digits-shifted-smoke-snapshots-3-information.svg",
    }
    for name in figures:
        ElementTree.parse(cwd / REPORT / "figures" / name)
    markdown = (cwd / REPORT / "report.md").read_text()
    assert set(re.findall(r"\(figures/([^)]*)\)", markdown)) == figures
    assert list((cwd / "out").glob("projections/*/projections.png"))


def test_the_same_command_trains_nothing_again_and_the_report_stands_alone(reproduced):
    cwd, done = reproduced
    again = lsexp("reproduce", *WORDS, cwd=cwd)
    assert "8 runs: 8 finished, 0 to do" in again.stderr
    assert again.stdout == done.stdout
    alone = lsexp("report", "out_dir=other", cwd=cwd)
    assert alone.returncode == 0, alone.stderr
    assert names(cwd / "other/report/figures") == names(cwd / REPORT / "figures")
    words = ["calibration", "calibration", "recipe=digits_mlp"]
    some = lsexp("report", *words, "out_dir=some", cwd=cwd)
    assert some.returncode == 0
    [folder] = (cwd / "some").iterdir()  # beside the report of all, not over it
    assert folder.name == "report-calibration-digits_mlp"
    assert len(names(folder / "figures")) == 3


@pytest.fixture(scope="module")
def fewer(tmp_path_factory):
    """A folder with one sweep of two runs, of which one was removed, and its report."""
    folder = tmp_path_factory.mktemp("fewer")
    done = lsexp("sweep", "eps", "budget=smoke", "eps=0,0.1", "seeds=1", "workers=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(next((folder / "runs").glob("*eps0.1-*")))
    done = lsexp("report", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_report_of_one_sweep_has_the_studies_of_its_runs_and_what_is_missing(fewer):
    text = parsed((fewer / "out/report/report.html").read_text())[1]
    assert "1 of 2 runs missing: eps=0.1 seed=0" in text
    assert "None of these networks is the paper's." in text
    assert "Table 2:" in text
    assert "Table 3, Figure 2:" in text
    assert "Figure 5:" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report"], "report: no sweep in runs; `lsexp reproduce` makes one of every study"),
        (["report", "epss"], "epss: no such study; did you mean eps?"),
        (["report", "recipes=a"], "recipes=a: no key of a report; did you mean recipe?"),
        (["report", "figure.format=pdf"], "figure.format=pdf: a report's figures are SVG"),
        (["report", "recipe=a", "recipe=b"], "recipe: is given twice"),
        (["report", "recipe="], "recipe= must name something"),
        (["reproduce", "epss"], "epss: no such study; did you mean eps?"),
        (["reproduce", "rows=a,b"], "rows=a,b: goes with one study"),
        (["reproduce", "seed=3"], "eps: seed=3: eps sets it; type seeds=5"),
        (["reproduce", "snapshot=3"], "snapshot=3: no such key; did you mean snapshots?"),
        (["reproduce", "information", "recipe=digits_mlp"], "augment: information needs images"),
        (["reproduce", "student.optim.lr=1"], "student.optim.lr=1: needs students=true"),
        (
            ["reproduce", "eps", "teacher.optim.lr=1"],
            "teacher.optim.lr=1: none of eps has",
        ),
        (["reproduce", "eps.runs_dir=x"], "eps.runs_dir=x: is for all studies, write runs_dir=x"),
        (["reproduce", "eps.out_dir=x"], "eps.out_dir=x: is for all studies, write out_dir=x"),
        (["reproduce", "eps.threads=2"], "eps.threads=2: is for all studies, write threads=2"),
        (["reproduce", "eps", "information.eps=0"], "information.eps=0: information is not among"),
        (
            ["reproduce", "informtion.eps=0"],
            "informtion.eps=0: no such study; did you mean infor",
        ),
        (
            ["reproduce", "eps", "recipe=mnist_toy"],
            "recipe=mnist_toy: its networks are students, which `lsexp reproduce distillation "
            "recipe=mnist_toy` trains; recipe=mnist_toy_teacher of their teachers",
        ),
        (["reproduce", "budget=smok"], "eps: budget=smok: must be one of"),
        (["reproduce", "protocol=halves"], "protocol=halves: must be draws or paper"),
        (["reproduce", "eps=0.05,0.1"], "eps=0.05,0.1: must have 0, the hard teacher"),
        (["reproduce", "out_dir=/dev/null/x"], "out_dir=/dev/null/x: /dev/null is no folder that"),
    ],
)
def test_wrong_words(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    out, err = capsys.readouterr()
    said = err.splitlines()[-1]
    assert re.match(rf"lsexp: ((information|distillation): )?{re.escape(message)}", said), said
    assert out == ""


def reproduce_plan(monkeypatch, capsys, cwd, *words):
    """{(study, role): configs} of a dry run, and what it says in the end."""
    found = {}

    def planned(job):
        for row in job.asked:
            for run in row.runs:
                key = job.study, run.keys.get("role")
                found.setdefault(key, []).append(run.config)
        return job

    monkeypatch.chdir(cwd)
    monkeypatch.setattr("lsexp.reproduce.Job", lambda *args, **more: planned(Job(*args, **more)))
    assert main(["reproduce", *words, "--dry-run"]) == 0
    return found, capsys.readouterr().out.splitlines()[-1]


def test_a_study_may_be_called_as_a_key(tmp_path, monkeypatch, capsys):
    words = ["calibration", "eps=0,0.2", "seeds=1"]
    found, said = reproduce_plan(monkeypatch, capsys, tmp_path, *words)
    assert [config.loss.eps for config in found["calibration", None]] == [0.0, 0.2]
    assert "reproduce calibration, 2 runs" in said


def test_runs_cannot_go_below_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["reproduce", "eps", "runs_dir=file/runs", "--dry-run"]) == 2
    assert capsys.readouterr().err == "lsexp: runs_dir=file/runs: file is no folder\n"


def test_own_data_are_not_said_to_be_the_recipes(tmp_path):
    rng = np.random.default_rng(0)
    split = {"x": rng.integers(0, 255, (80, 8, 8), dtype=np.uint8), "y": np.arange(80) % 3}
    arrays = {f"{name}_{part}": split[name] for name in "xy" for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", **arrays)
    words = ["data=npz", "data.path=mine.npz", "budget=smoke", "eps=0", "seeds=1", "workers=1"]
    done = lsexp("sweep", "eps", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert lsexp("report", "eps", cwd=tmp_path).returncode == 0
    text = parsed((tmp_path / "out/report-eps/report.html").read_text())[1]
    assert "digits_mlp on mine, budget smoke" in text
    assert "scikit-learn" not in text


def test_words_are_of_the_networks_of_the_recipe(tmp_path, monkeypatch, capsys):
    words = ["recipe=digits_mlp", "model.widths=[8]", "optim.lr=0.3", "train.steps=20", "seeds=1"]
    words += ["eps=0,0.1", "temperatures=1", "distillation.temperatures=1,4", "loss.beta=0.5"]
    found, said = reproduce_plan(monkeypatch, capsys, tmp_path, *words)
    assert {c.model.widths[0] for c in found["distillation", "teacher"]} == {8}
    assert {c.model.widths[0] for c in found["distillation", "student"]} == {16}
    assert {c.loss.beta for c in found["distillation", "student"]} == {0.5}
    assert len(found["distillation", "student"]) == 3  # two temperatures, and a smoothed teacher
    for configs in found.values():
        assert {(c.train.steps, c.optim.lr) for c in configs} == {(20, 0.3)}
    assert "7 runs" in said  # two of which all share


@pytest.mark.parametrize("word", ["students=1", "information.students=true"])
def test_words_are_of_the_students_of_snapshots_however_these_are_asked_for(
    tmp_path, monkeypatch, capsys, word
):
    words = ["information", word, "optim.lr=0.3", "eps=0", "seeds=1", "snapshots=3"]
    found, _ = reproduce_plan(monkeypatch, capsys, tmp_path, "budget=smoke", *words)
    assert {config.optim.lr for config in found["information", "student"]} == {0.3}
    no = ["information", word, "information.students=false"]
    if word == "students=1":
        found, _ = reproduce_plan(monkeypatch, capsys, tmp_path, "budget=smoke", *no)
        assert ("information", "student") not in found


def test_each_section_says_how_it_is_drawn_again(fewer):
    page = (fewer / "out/report/report.md").read_text()
    commands = re.findall(r"^`lsexp (.*)`$", page, re.MULTILINE)
    assert commands[0].startswith("sweep eps budget=smoke")
    assert commands[1:] == [
        "plot projections budget=smoke eps=0,0.1 seeds=0,",
        "plot calibration budget=smoke eps=0,0.1 seeds=0,",
    ]
    for command in commands:
        assert lsexp(*shlex.split(command), cwd=fewer).returncode == 0


def test_commands_find_the_runs_that_the_report_is_of(fewer, tmp_path):
    runs = shutil.copytree(fewer / "runs", tmp_path / "else where")
    shutil.rmtree(next(runs.glob("*eps0-*")), ignore_errors=True)
    words = ["eps", "runs_dir=else where"]
    sweep = ["sweep", "eps", "budget=smoke", "eps=0,0.1", "seeds=1", "workers=1"]
    done = lsexp(*sweep, "runs_dir=else where", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(next(runs.glob("*eps0.1-*")))
    lsexp("report", *words, cwd=tmp_path)
    page = (tmp_path / "out/report-eps/report.md").read_text()
    told = f"lsexp {' '.join(sweep)} 'runs_dir=else where'"
    assert f"{told} trains them" in page.replace("\\_", "_")
    assert f"`{told}`" in page


def test_sweeps_of_one_kind_are_reported_together(fewer, tmp_path):
    shutil.copytree(fewer / "runs", tmp_path / "runs")
    own = ["eps=0,0.1 seeds=1", "eps=0 seeds=1", "eps=0 seeds=7,8"]
    for words in own:
        typed = ["budget=smoke", *words.split(), "workers=1"]
        done = lsexp("sweep", "eps", *typed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(next((tmp_path / "runs").glob("*seed7*")))
    done = lsexp("report", "eps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/report-eps/report.md").read_text()
    assert "| 0 | 2 |" in page
    assert "| 0.1 | 1 |" in page  # of the first, though it is not the newest
    missing = "1 of 4 runs missing: eps=0 seed=7; lsexp sweep eps budget=smoke eps=0 seeds=7,8 "
    assert missing in page
    commands = re.findall(r"^`(lsexp .*)`$", page, re.MULTILINE)
    # The second has nothing that the first has not.
    assert commands == [f"lsexp sweep eps budget=smoke {own[k]} workers=1" for k in (2, 0)]


def test_sweeps_of_the_same_words_by_an_edited_recipe_are_no_more_seeds(tmp_path):
    recipe = tmp_path / "conf/recipe/mine.yaml"
    recipe.parent.mkdir(parents=True)
    words = ["eps", "--config-dir", "conf", "recipe=mine", "eps=0", "workers=1"]
    for rate, seeds in ((0.1, "2"), (0.2, "2"), (0.2, "3")):
        text = "# @package _global_\ndefaults: [digits_mlp]\n"
        recipe.write_text(f"{text}optim: {{lr: {rate}}}\nbudgets: {{cpu: {{steps: 9}}}}\n")
        done = lsexp("sweep", *words, f"seeds={seeds}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = lsexp("report", "eps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/report-eps/report.md").read_text()
    assert page.count("| 0 | 3 |") == page.count("| 0 | 2 |") == 1
    for rate in (0.1, 0.2):
        assert f"With `optim.lr={rate}`." in page


def test_what_cannot_be_read_or_drawn_does_not_end_a_report(fewer, tmp_path):
    folder = shutil.copytree(fewer, tmp_path / "odd")
    sweeps = folder / "runs" / ".sweeps"
    whole = json.loads(next(sweeps.glob("eps-*.json")).read_text())
    del whole["seal"]
    part = whole["parts"][0]

    def write(number, parts):
        changed = whole | {"parts": parts}
        text = json.dumps({**changed, "seal": files.seal(changed)})
        (sweeps / f"eps-{number}.json").write_text(text)

    for number, parts in enumerate(
        ([], [part | {"keys": {"unheard_of": 1}}], [part | {"chosen": {}}], [part | {"runs": [1]}])
    ):
        write(number, parts)
    other = [
        part | {"chosen": part["chosen"] | {"recipe": "other"}, "runs": [
            run | {"name": f"no-{run['name']}"} for run in part["runs"]]}
    ]  # fmt: skip
    write(9, other)
    done = lsexp("report", "eps", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = parsed((folder / "out/report-eps/report.html").read_text())[1]
    assert "left out, none of its runs is there: `lsexp sweep eps" in done.stderr
    assert text.count("Table 2: accuracy, NLL and ECE against the smoothing") == 1


def test_two_sweeps_of_one_study_have_anchors_of_their_own(reproduced):
    cwd, _ = reproduced
    folder = cwd / "two"
    for rate in (".1", "1"):
        words = ["budget=smoke", "eps=0", "seeds=1", "workers=1", f"optim.lr={rate}"]
        assert (
            lsexp("sweep", "eps", *words, cwd=cwd, env={"LSEXP_RUNS_DIR": str(folder)}).returncode
            == 0
        )
    done = lsexp("report", "eps", f"runs_dir={folder}", "out_dir=two_out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    parsed((cwd / "two_out/report-eps/report.html").read_text())
    assert len(names(cwd / "two_out/report-eps/figures")) == 2


def smoothed(runs):
    """The run of `sweep eps` at eps 0.1."""
    [manifest] = (runs / ".sweeps").glob("eps-*.json")
    [name] = [
        run["name"]
        for run in json.loads(manifest.read_text())["parts"][0]["runs"]
        if run["keys"]["eps"] == 0.1
    ]
    return runs / name


def failed(run):
    (run / "failure.json").write_text(json.dumps({"error": "loss is nan", "step": 3}))
    (run / "metrics.json").unlink()


def damaged(run):
    (run / "metrics.json").write_text('{"val"')


def stale(run):
    change_metrics(run, "identity", result_version=0)


def changed(run):
    (run / "outputs.safetensors").write_bytes(b"")


@pytest.mark.parametrize("spoil", [failed, damaged, stale, changed])
def test_runs_that_are_no_good_are_left_out_and_told(reproduced, tmp_path, spoil):
    runs = shutil.copytree(reproduced[0] / "runs", tmp_path / "runs")
    run = smoothed(runs)
    spoil(run)
    done = lsexp("report", "eps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("1 of 2 runs missing" if spoil is failed else "left out") in done.stderr
    page = parsed((tmp_path / "out/report-eps/report.html").read_text())[1]
    [said] = re.findall(r"1 of 2 runs missing: eps=0.1 seed=0 \((\w+)\); (lsexp .{,300})", page)
    assert said[0] == ("damaged" if spoil is changed else spoil.__name__)
    assert ("retry_failed=true" in said[1]) == (spoil is failed)
    assert ("lsexp runs rm" in said[1]) == (spoil is stale)
    assert ("lsexp runs repair" in said[1]) == (spoil in (damaged, changed))
    assert re.search(r"\b0\.1 0\b", page)  # the row is there, of no seed
    assert "needs runs at eps 0 and 0.1" in page


def test_rows_and_recipes_of_ones_own(tmp_path):
    own = tmp_path / "own/recipe/mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(
        "# @package _global_\n# A narrow <one>. It is cheap.\ndefaults:\n  - digits_mlp\n"
        "model: {widths: [8]}\nbudgets:\n  smoke: {steps: 30}\n"
    )
    words = ["rows=mine,digits_mlp", "--config-dir", "own", "budget=smoke", "eps=0", "seeds=1"]
    done = lsexp("sweep", "eps", *words, "workers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = lsexp("report", "eps", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out/report-eps/report.html").read_text()
    text = parsed(page)[1]
    assert "A narrow <one>. The paper has no such network." in text  # of the file, escaped
    assert "mine on digits, budget smoke (30 steps" in text
    assert "digits_mlp, budget smoke (" in text
    [command] = re.findall(r"<pre><code>(.*?)</code></pre>", page)
    assert command == f"lsexp sweep eps {shlex.join(words)} workers=1"
    done = lsexp("report", "recipe=mine", cwd=tmp_path)
    assert (tmp_path / "out/report-mine/report.html").exists()


def test_what_is_reduced_against_the_paper():
    def row(**more):
        of = {"recipe": "cifar10_alexnet", "status": "finished", "steps": 390_000}
        return of | {"images": 40_000, "train_size": None} | more

    assert _reduced([row()], [], papers=True) == ""
    fewer = row(images=5000, train_size=5000)
    said = "Reduced: cifar10_alexnet: 5,000 training images instead of all."
    assert _reduced([row(), fewer], [], papers=True) == said
    shorter = row(steps=15_000, status="finished")
    said = "Reduced: cifar10_alexnet: 15,000 of the paper's 390,000 steps."
    assert _reduced([shorter, row(status="failed", steps=1)], [], papers=True) == said
    assert _reduced([], [], papers=False) == "The paper has no such network. "


def test_what_was_run_has_temperatures_where_there_are_any():
    def row(role, temperature, eps=0.0):
        of = dict.fromkeys(("images", "cpu_class", "torch", "commit"), "")
        of |= {"recipe": "mine", "status": "finished", "steps": 10, "budget": "cpu", "seconds": 5}
        of |= {"device": "cpu", "precision": "fp32", "threads": 1, "seed": 0, "eps": eps}
        return of | {"role": role, "temperature": temperature}

    rows = [
        row("teacher", None),
        row("student", 4.0),
        row("student", 1.0),
        row("student", 1.0, 0.1),
    ]
    header, found = _ran(rows)
    column = header.index("temperature")
    assert [one[column] for one in found] == ["", "1, 4"]
    assert "hours of cores" in header
    assert {len(one) for one in found} == {len(header)}
    assert "temperature" not in _ran([row("teacher", None)]).header


def test_hours_are_of_cores_or_of_a_gpu():
    of = dict.fromkeys(("images", "cpu_class", "torch", "commit"), "")
    of |= {"recipe": "mine", "status": "finished", "steps": 10, "budget": "cpu", "seconds": 3600}
    of |= {"device": "cpu", "precision": "fp32", "threads": 4, "seed": 0, "eps": 0.0}
    header, [alone] = _ran([of])
    assert alone[header.index("hours of cores")] == "4.00"
    header, both = _ran([of, of | {"device": "NVIDIA H200"}])
    hours = [row[header.index("hours")] for row in both]
    assert hours == ["4.00 of cores", "1.00 of a GPU, shared"]


def test_a_study_that_could_not_be_drawn_is_left_out_where_all_are_asked(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "recipe=digits_mlp", *WORDS, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "information is left out: augment: information needs images" in err
    assert "reproduce eps, projections, calibration, distillation, 6 runs" in out


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def browser(page, folder, *words):
    """The page as a browser makes it of `page`, and its console."""
    path = folder / "page.html"
    path.write_text(page)
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", *words),
            *("--dump-dom", f"file://{path}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


SORTS = """<script>
const found = [];
const table = document.querySelectorAll("section table")[0];
for (const column of [0, 1, 1]) {
  table.querySelectorAll("th button")[column].click();
  found.push([...table.tBodies[0].rows].map((row) => row.children[column].textContent));
}
const wide = document.documentElement.scrollWidth - window.innerWidth;
document.title = JSON.stringify({found, wide, alt: document.querySelector("[role=img]").ariaLabel});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser_tables_sort_and_nothing_is_wrong(tmp_path, width):
    page = as_html([SECTION], "lsexp report").replace("</body>", f"{SORTS}</body>")
    made, console = browser(page, tmp_path, f"--window-size={width},900")
    assert console == []
    said = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", made)[1]))
    assert said["found"] == [
        ["0", "0.05", "0.1", ""],  # numbers, nothing last
        ["3", "97", "98.2 ± 0.1", "1,000"],
        ["1,000", "98.2 ± 0.1", "97", "3"],
    ]
    assert said["wide"] <= 0  # wide tables scroll by themselves, the page does not
    assert said["alt"] == "Table 2. mine"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_a_real_report(reproduced, tmp_path):
    cwd, _ = reproduced
    page = (cwd / REPORT / "report.html").read_text()
    clicks = (
        "for (const one of document.querySelectorAll('th button')) { one.click(); one.click(); }"
    )
    sorted_page = page.replace("</body>", f"<script>{clicks}</script></body>")
    made, console = browser(sorted_page, tmp_path)
    assert console == []
    assert made.count('aria-sort="descending"') == page.count("<table")  # the last of each table
    assert made.count("<svg") == page.count("<svg") >= 7
    assert made.count('role="img"') == page.count("<svg")
