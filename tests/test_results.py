"""What the READMEs tell: the numbers of results/, the shape of the code; how results/ is made."""

import ast
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lsexp import studies
from lsexp.analysis.statistics import paired
from lsexp.cli import main
from lsexp.compose import train_configs
from lsexp.sweep.asked import ask

ROOT = Path(__file__).resolve().parents[1]
README = " ".join((ROOT / "README.md").read_text().split())
TOLD = " ".join((ROOT / "results/README.md").read_text().split())
"""What each figure shows."""
THIRD = "cifar10_alexnet-paper-train.steps=130000-precision=bf16"
"""A third of the paper's schedule."""
THIN = "cifar100_resnet56_thin-cpu-precision=bf16"


def pm(row, digits, factor=1.0):
    """An estimate with half of its interval, if it has one."""
    text = f"{factor * row.value:.{digits}f}"
    if row.low == row.low:
        text += f" ± {factor * (row.high - row.low) / 2:.{digits}f}"
    return text


def row_of(name, eps, finer):
    """A line of the table at the beginning: accuracy, ECE, seeds, what was run.

    finer: with a digit more than others.
    """
    folder = ROOT / "results" / name
    found = pd.read_csv(folder / "calibration.csv", dtype={"temperature": str})
    runs = pd.read_csv(folder / "runs.csv").query("status == 'finished'")
    runs = runs[runs.eps.isin([0, eps])].astype({"steps": int, "images": int, "threads": int})
    found = found[(found.source == "ours") & found.eps.isin([0, eps])]

    def one(eps, metric, temperature="1", split="test"):
        where = (found.eps == eps) & (found.metric == metric) & (found.split == split)
        [row] = found[where & (found.temperature == temperature)].itertuples()
        return row

    hard, smoothed = (pm(one(at, "accuracy"), 1 + finer, 100) for at in (0, eps))
    temperature = one(0, "temperature", "fitted", "val").value
    ece = f"{pm(one(0, 'ece'), 3 + finer)} → {pm(one(eps, 'ece'), 3 + finer)}"
    scaled = f"{pm(one(0, 'ece', 'fitted'), 3 + finer)} (T {temperature:.2f})"
    [work] = {f"{r.steps:,} steps on {r.images:,} images" for r in runs.itertuples()}
    each = {c for told in runs.commit for c in told.split(", then ")}
    commits = ", ".join(sorted(f"`{c[:7]}{c[40:]}`" for c in each))
    commits = commits.replace(" (dirty)`", " (dirty)` †")
    devices = {f"{r.device} ({r.cpu_class}), {r.precision}" for r in runs.itertuples()}
    if len(devices) == 1:
        minutes = f"{runs.seconds.median() / 60:.3g} min a run of {runs.threads.max()} thread"
        where = f"{minutes}, {devices.pop()}"
    else:
        where = "on an NVIDIA H200 and, to the end, on a CPU, bf16"
        assert {r.device for r in runs.itertuples()} == {"NVIDIA H200", "NVIDIA H200, then cpu"}
        assert {*runs.precision} == {"bf16"}
    return (
        f"| {hard} → {smoothed} (eps {eps:g}) | {ece} | {scaled} | {runs.seed.nunique()} | "
        f"{work}, {where} | {commits} |"
    )


@pytest.mark.parametrize(
    ("name", "eps", "finer"),
    [
        ("calibration/cifar10_alexnet-cpu", 0.1, False),
        (f"cifar/calibration/{THIRD}", 0.1, False),
        (f"cifar/calibration/{THIN}", 0.05, False),
        ("mnist/calibration/mnist_mlp-paper", 0.05, True),
    ],
)
def test_the_table_at_the_beginning(name, eps, finer):
    row = row_of(name, eps, finer)
    assert row in README, row
    if "†" in row:
        [commit] = re.findall(r"`([0-9a-f]+) \(dirty\)`", row)
        [copied] = re.findall(r"†: a copy of the code of `([0-9a-f]+)`", README)
        assert f"`{copied}` (`{commit} (dirty)` in `runs.csv` is a copy of it)" in TOLD


def findings(pattern):
    files = sorted((ROOT / "results").glob(f"{pattern}/findings.csv"))
    assert files, pattern
    return pd.concat([pd.read_csv(path) for path in files])


def test_verdicts():
    told = ["supported", "contradicted", "inconclusive", "not tested"]
    digits = findings("digits/*/*").verdict
    assert {*digits} <= {*told}
    counts = digits.value_counts().reindex(told, fill_value=0)
    said = f"of {len(digits)} verdicts {counts['supported']} are supported, "
    said += ", ".join(f"{counts[verdict]} {verdict}" for verdict in told[1:])
    assert said in README, said
    students = findings("digits/distillation/*-cpu-grid=full")
    assert [*students.verdict] == ["inconclusive", "contradicted", *["inconclusive"] * 3]
    tied = findings("digits/distillation/*tied*")
    open_ = ["inconclusive"] * 2
    assert [*tied.verdict] == ["supported", "contradicted", *open_, "supported"]
    for row in (*students.itertuples(), *tied.itertuples()):
        interval = f"[{100 * row.low:.2f}, {100 * row.high:.2f}]"
        assert re.search(rf"{abs(100 * row.value):.2f} (points )?{re.escape(interval)}", TOLD), row
    alexnet = [*findings("projections/cifar10_alexnet-cpu").itertuples()]
    information = findings("information/cifar10_alexnet-cpu")
    alexnet += information[information["where"] == "Figure 6"].itertuples()
    assert [row.verdict for row in alexnet] == ["supported"] * 9


def test_mnist_at_the_papers_length():
    found = findings("mnist/*/mnist_mlp-paper").set_index("claim")
    accuracy = found.loc["accuracy-unchanged"]
    value, low, high = (f"{100 * accuracy[name]:.2f}" for name in ("value", "low", "high"))
    assert f"smoothing by 0.1 gains {value} points [{low}, {high}] of accuracy" in README
    assert f"+{value} points [{low}, {high}]" in TOLD
    assert 10 ** found.loc["clusters-tighter"].value == pytest.approx(1 / 5, abs=0.02)
    assert 10 ** found.loc["scale-smaller"].value == pytest.approx(1 / 4, abs=0.03)
    assert dict(found[found["where"] == "Figure 1"].verdict) == {
        "clusters-tighter": "supported",
        "validation-spreads": "inconclusive",
        "templates-equidistant": "contradicted",
        "clusters-regular": "supported",
        "scale-smaller": "supported",
    }
    folder = ROOT / "results/mnist/calibration/mnist_mlp-paper"
    table = pd.read_csv(folder / "calibration.csv", dtype={"temperature": str})
    of = table[(table.source == "ours") & (table.split == "test")]
    of = of.set_index(["eps", "temperature", "metric"]).value
    wrong = [f"{100 * (1 - of[eps, '1', 'accuracy']):.2f}" for eps in (0.1, 0, 0.05)]
    told = "{} % of the test set are wrong instead of {} ({} at eps 0.05)".format(*wrong)
    assert told in TOLD, told
    hard = f"{of[0, '1', 'ece']:.4f} without, {of[0, 'fitted', 'ece']:.4f} with it"
    ece = f"ECE is {of[0.05, '1', 'ece']:.4f} at eps 0.05, {of[0.1, '1', 'ece']:.4f} at 0.1"
    first, second, third = (f"{of[eps, 'fitted', 'nll']:.4f}" for eps in (0.05, 0.1, 0))
    assert f"(ECE {hard}), and {ece}" in TOLD
    assert f"{first} and {second} nats where hard ones have {third}" in TOLD


def test_alexnet_on_all_images():
    path = ROOT / "results/cifar/calibration" / THIRD / "calibration.csv"
    table = pd.read_csv(path, dtype={"temperature": str}).query("source == 'ours'")
    table = table.set_index(["eps", "split", "temperature", "metric"]).value
    told = f"T {table[0, 'val', 'fitted', 'temperature']:.2f}), from "
    hard, smoothed = (f"{table[eps, 'test', '1', 'ece']:.3f}" for eps in (0, 0.1))
    assert f"{told}{hard} to {smoothed} at eps 0.1" in README
    found = findings(f"cifar/*/{THIRD}").set_index("claim")
    accuracy, confidence = found.loc["accuracy-unchanged"], found.loc["hard-overconfident"]
    assert accuracy.verdict == confidence.verdict == "supported"
    value, *ends = (f"{100 * accuracy[name]:.2f}" for name in ("value", "low", "high"))
    assert f"+{value} [{', '.join(ends)}]" in README
    assert f"+{value} points [{', '.join(ends)}] of accuracy" in TOLD
    value, *ends = (f"{100 * confidence[name]:.2f}" for name in ("value", "low", "high"))
    assert f"hard ones are {value} points [{', '.join(ends)}] too confident" in TOLD
    planes = found[found["where"] == "Figure 1"]
    assert dict(planes.verdict[planes.verdict != "supported"]) == {
        "templates-equidistant": "inconclusive"
    }
    assert len(planes) == 5


def test_the_grid_of_teachers_and_temperatures():
    tied = "loss.student_temperature=tied-loss.t_squared=true-"
    columns = []
    for where in ("", tied):
        folder = ROOT / f"results/digits/distillation/digits_distill-cpu-{where}grid=full"
        grid = pd.read_csv(folder / "grid.csv").set_index("temperature")
        columns.append(100 * grid[grid.eps == 0.15][["value", "low", "high"]])
    for temperature in (1, 2, 3, 4):
        rows = (column.loc[temperature] for column in columns)
        cells = [f"{row.value:+.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows]
        assert f"| {temperature} | {' | '.join(cells)} |" in TOLD, cells


def test_the_grid_on_mnist():
    folder = ROOT / "results/mnist/distillation/mnist_distill-cpu-grid=full"
    table, grid = (pd.read_csv(folder / f"{name}.csv") for name in ("distillation", "grid"))
    right = table[(table.metric == "accuracy") & (table.split == "test")]
    teachers = right[right.role == "teacher"].set_index("eps")
    alone = right[right.role == "baseline"].set_index("eps")
    assert alone.value.idxmax() == 0.1
    assert right[right.role == "student"].value.max() < alone.value[0.1]
    best = pm(alone.loc[0.1], 2, 100)
    assert f"labels smoothed by 0.1 ({best} %)" in TOLD
    assert abs(teachers.value[0.1] - teachers.value[0.0]) < 0.001  # as good as each other
    for eps in (0.3, 0.6):
        [row] = grid[(grid.eps == eps) & (grid.temperature == 1)].itertuples()
        told = f"{100 * row.value:+.2f} [{100 * row.low:.2f}, {100 * row.high:.2f}]"
        assert told in TOLD, told
    students = right[(right.role == "student") & (right.temperature == 16)].set_index("eps").value
    told = ", ".join(f"{100 * students[eps]:.1f} after {eps:g}" for eps in (0.1, 0.3, 0.6))
    assert f"at 16 to {100 * students[0]:.1f} % after eps 0, {told}" in TOLD
    claims = findings("mnist/distillation/mnist_distill-*").set_index("claim")
    [at_one] = grid[(grid.eps == 0.1) & (grid.temperature == 1)].itertuples()
    assert (
        f"{100 * at_one.value:+.2f} points [{100 * at_one.low:.2f}, {100 * at_one.high:.2f}]"
        in TOLD
    )
    none = claims.loc["hard-teachers-help"]
    assert f"{100 * none.value:+.2f} points [{100 * none.low:.2f}, {100 * none.high:.2f}]" in TOLD
    less = claims.loc["smoothed-teachers-do-not-help"]
    assert f"{-100 * less.value:.2f} points [{-100 * less.high:.2f}, {-100 * less.low:.2f}]" in TOLD
    assert {*claims.verdict} == {"inconclusive"}


def test_the_toy_and_the_students_of_snapshots():
    folder = ROOT / "results/mnist/distillation/mnist_toy-paper"
    toy = pd.read_csv(folder / "toy.csv")
    assert [*toy.role] == ["teacher", "teacher", "student", "student"]
    assert [*toy.teacher_eps] == [0, 0.1, 0, 0.1]
    for name, cells in (
        ("**paper**", [f"{value:.2f}" for value in toy.paper]),
        ("public reproduction", [f"{value:.2f}" for value in toy.public_reproduction]),
        ("ours", [pm(row, 2) for row in toy.itertuples()]),
    ):
        assert f"| {name} | {' | '.join(cells)} |" in TOLD
    claims = findings("mnist/distillation/mnist_toy-paper").set_index("claim")
    worse, helps = claims.loc["smoothed-teachers-teach-worse"], claims.loc["hard-teachers-help"]
    low, value, high = (-100 * worse[name] for name in ("high", "value", "low"))
    assert f"teach worse, by {value:.2f} points [{low:.2f}, {high:.2f}]" in TOLD
    low, value, high = (100 * helps[name] for name in ("low", "value", "high"))
    assert f"{value:.2f} points [{low:.2f}, {high:.2f}] more, trained" in TOLD
    right = pd.read_csv(folder / "distillation.csv").query(
        "role == 'baseline' and metric == 'accuracy' and split == 'test'"
    )
    for row in right.itertuples():
        told = f"{100 * (1 - row.value):.2f} ± {50 * (row.high - row.low):.2f}"
        assert f"{told} %" in TOLD, told
        assert told in README, told
    for row in toy[toy.role == "student"].itertuples():
        assert pm(row, 2) in README
    assert [*claims.verdict] == ["supported", "inconclusive", "supported"]
    alike = claims.loc["smoothed-teachers-do-not-help"]
    low, value, high = (100 * alike[name] for name in ("low", "value", "high"))
    assert f"{value:.2f} points [{low:.2f}, {high:.2f}] apart" in TOLD
    [path] = (ROOT / "results/mnist/information").glob("mnist_mlp-paper-*")
    students = pd.read_csv(path / "students.csv")
    end = students[students.step == students.step.max()]
    for row in end[end.metric == "test_accuracy"].itertuples():
        assert pm(row, 2, 100) in TOLD
    found = findings("mnist/information/mnist_mlp-paper-*").set_index("claim")
    row = found.loc["students-miss-what-is-erased"]
    assert f"{100 * row.value:+.2f} points [{100 * row.low:.2f}, {100 * row.high:.2f}]" in TOLD
    each = pd.read_csv(path / "students_by_seed.csv").query(f"step == {students.step.max()}")
    of = each.pivot_table(index="seed", columns="eps", values="test_accuracy")
    more = paired(of[0.1].to_numpy(), of[0.0].to_numpy()).difference
    told = f"by {100 * more.value:.2f} points [{100 * more.low:.2f}, {100 * more.high:.2f}] over"
    assert told in TOLD, told


def test_the_numbers_of_figure_1():
    def read(name):
        table = pd.read_csv(ROOT / "results" / name / "projections.csv")
        table = table.assign(split=table.split.fillna(""))
        return table.set_index(["eps", "split", "metric"]).sort_index()

    def two(table, split, metric, digits, eps=0.1, joint="and"):
        hard, smoothed = (pm(table.loc[at, split, metric], digits) for at in (0, eps))
        return f"{hard} {joint} {smoothed}"

    def smaller(table):
        extents = [table.value[at, "train", "extent_plane"] for at in (0, 0.1)]
        return f"{extents[0] / extents[1]:.1f} times smaller"

    mnist = read("mnist/projections/mnist_mlp-paper")
    hard, smoothed = (f"{mnist.value[at, 'train', 'scatter_ratio']:.2f}" for at in (0, 0.1))
    assert f"in all dimensions hardly ({hard} to {smoothed})" in TOLD
    alexnet = read("projections/cifar10_alexnet-cpu")
    scatter = [two(alexnet, split, "scatter_ratio_plane", 3) for split in ("train", "val")]
    assert f"(scatter within by between classes {scatter[0]})" in TOLD
    assert f"those of images held out stay wider ({scatter[1]})" in TOLD
    sides = [f"{alexnet.value[at, '', 'side_ratio']:.2f}" for at in (0, 0.1)]
    told = f"(longest side by shortest {' and '.join(sides)}) and the picture"
    assert f"{told} {smaller(alexnet)}" in TOLD
    third = read(f"cifar/projections/{THIRD}")
    scatter = [two(third, split, "scatter_ratio_plane", 3) for split in ("train", "val")]
    assert f"({scatter[0]}, held out {scatter[1]}, {smaller(third)})" in TOLD
    sides = [f"{third.value[at, '', 'side_ratio']:.2f}" for at in (0, 0.1)]
    assert f"whose triangle cannot be told apart ({' and '.join(sides)})" in TOLD
    clusters = two(third, "train", "clusters_side_ratio", 2, joint="to")
    assert f"of the clusters becomes nearly regular ({clusters})" in TOLD
    thin = read(f"cifar/projections/{THIN}")
    plane, val = (
        two(thin, split, "scatter_ratio_plane", 2, eps=0.05, joint="to")
        for split in ("train", "val")
    )
    whole = two(thin, "train", "scatter_ratio", 1, eps=0.05, joint="to")
    assert f"training clusters are a little tighter in the plane ({plane})" in TOLD
    assert f"not in all dimensions ({whole})" in TOLD
    assert f"overlap, under smoothing more ({val})" in TOLD


def test_the_numbers_of_table_3_on_cifar_100():
    found = findings(f"cifar/calibration/{THIN}").set_index("claim")
    verdicts = ["supported", "supported", "contradicted", "contradicted"]
    assert [*found.verdict] == verdicts
    table = pd.read_csv(
        ROOT / f"results/cifar/calibration/{THIN}/calibration.csv", dtype={"temperature": str}
    ).query("source == 'ours'")

    def one(eps, metric, temperature, split="test"):
        here = table[(table.eps == eps) & (table.metric == metric) & (table.split == split)]
        [row] = here[here.temperature == temperature].itertuples()
        return row

    hard, scaled, smoothed, own = (
        pm(one(eps, "ece", at), 3)
        for eps, at in ((0, "1"), (0, "fitted"), (0.05, "1"), (0.05, "fitted"))
    )
    T, T_own = (pm(one(eps, "temperature", "fitted", "val"), 2) for eps in (0, 0.05))
    told = f"ECE is {hard} hard, {scaled} at their temperature of {T}, {smoothed} at eps 0.05"
    assert told in TOLD, told
    assert f"still over-confident: their own temperature is {T_own}, at which ECE is {own}" in TOLD
    one_seed = [f"{one(eps, 'ece', '1').value:.3f}" for eps in (0.1, 0.2)]
    T_of_one = [f"{one(eps, 'temperature', 'fitted', 'val').value:.2f}" for eps in (0.1, 0.2)]
    told = (
        f"ECE is {one_seed[0]} at eps 0.1 and {one_seed[1]} at 0.2, at a temperature of their own"
    )
    assert f"{told} of {' and '.join(T_of_one)}" in TOLD
    assert f"of which one seed is done, ECE is {' and '.join(one_seed)}" in README
    [accuracy] = findings(f"cifar/eps/{THIN}").itertuples()
    assert f"({100 * accuracy.value:.2f} points, {accuracy.verdict})" in TOLD
    runs = pd.read_csv(ROOT / f"results/cifar/calibration/{THIN}/runs.csv")
    assert f"{runs.seconds.sum() / 3600:.1f} core-hours" in TOLD
    low, high = (round(value / 60) for value in (runs.seconds.min(), runs.seconds.max()))
    assert f"{low} to {high} minutes a run" in TOLD


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (
            "mnist/information/mnist_mlp-paper-*",
            "from {start} nats up to {top0} hard and {top1} at eps 0.1, at the end {end0} hard|"
            "falling from step {turn} on, {end1}. The class is kept in both; "
            "within a class {within0} are left, and {within1}. "
            "Over three disjoint sets of images the ends are {sets0} and {sets1}",
        ),
        (
            "information/cifar10_alexnet-cpu",
            "{start} nats before training, up to {top0} hard and {top1} at eps 0.1; "
            "at the end {end0} hard, and {end1} at eps 0.1, where it falls from step {turn} on. "
            "The class is kept in both ({class0} and {class1} nats, log 2 = 0.69); "
            "within a class {within0} are left, and {within1}",
        ),
    ],
)
def test_the_numbers_of_figure_6(pattern, told):
    [folder] = (ROOT / "results").glob(pattern)
    table = pd.read_csv(folder / "information.csv")
    end = table.step.max()
    sets = table[table.interval == "subsets"]
    table = table[~table.interval.isin(["subsets", "redraws"])]
    numbers = {}
    for k, eps in enumerate((0, 0.1)):
        of = table[table.eps == eps].set_index(["metric", "step"]).sort_index()
        curve = of.value["information"]
        numbers["start"] = f"{curve[0]:.2f}"  # before training, whatever eps will be
        numbers["turn"] = curve.idxmax()  # in the end that of the smoothed
        numbers[f"top{k}"] = f"{curve.max():.2f}"
        numbers[f"end{k}"] = pm(of.loc["information", end], 2)
        numbers[f"class{k}"] = f"{of.value['between_classes', end]:.2f}"
        numbers[f"within{k}"] = pm(of.loc["within_class", end], 2)
        [row] = sets[sets.eps == eps].itertuples()
        numbers[f"sets{k}"] = pm(row, 2)
    for part in told.format(**numbers).split("|"):
        assert part in TOLD, part


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_report_says_what_the_tables_beside_it_say(name):
    said = (ROOT / "results" / name / "report/report.md").read_text().replace("\\", "")
    row = r"^\| . ([a-z ]+) \| (.+?) \| .+ \| (?:yes|no|of another place) \| (.+?) \| "
    left = [*findings(f"{name}/*/*").itertuples()]
    for verdict, text, estimate in re.findall(row, said, re.M):
        factor = 100 if " points (" in estimate else 1
        numbers = re.findall(r"(?<![\w.])[-+][0-9.e-]+", estimate)
        seeds = re.findall(r"n = (\d+)", estimate)
        same = [
            found
            for found in left
            if (found.verdict, found.text) == (verdict, text)
            and ([str(found.n)] if found.n else []) == seeds
            and [
                f"{factor * value:+.3g}"
                for value in (found.value, found.low, found.high)
                if value == value
            ]
            == numbers
        ]
        assert same, (text, estimate)
        left.remove(same[0])
    assert left == []


def test_every_folder_is_in_the_list():
    """results/README.md says of each what command made it; each says what was run."""
    table = (ROOT / "results/README.md").read_text().partition("## What came out")[0]
    listed = set(re.findall(r"^\| `([^`]+?)/?` \|", table, re.M))
    folders = {
        str(path.relative_to(ROOT / "results").parent)
        for path in (ROOT / "results").rglob("findings.csv")
    }
    sets = ("cifar", "digits", "mnist")
    top = {next((s for s in sets if f.startswith(f"{s}/")), f) for f in folders}
    assert top | {"bench"} == listed
    for folder in folders:
        runs = pd.read_csv(ROOT / "results" / folder / "runs.csv")
        done = runs[runs.status == "finished"]
        assert len(done)
        assert done[["commit", "command", "seconds", "device"]].notna().all(axis=None)


def test_what_the_readmes_link_is_there():
    assert "@" not in TOLD  # a place that was to be filled
    for folder, text in ((ROOT, README), (ROOT / "results", TOLD)):
        links = re.findall(r'(?:\]\(|src=")(?!http)([^)"]+)', text)
        assert links
        assert [link for link in links if not (folder / link).exists()] == []


@pytest.fixture
def script(tmp_path, monkeypatch):
    """scripts/results.py, which writes to tmp_path."""
    spec = importlib.util.spec_from_file_location("results", ROOT / "scripts/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("LSEXP_RUNS_DIR", str(tmp_path / "runs"))
    return module


def test_a_set_is_made_goes_on_and_is_logged(script, tmp_path, monkeypatch, capfd):
    sweep = "sweep eps budget=smoke eps=0 seeds=1 workers=1"
    monkeypatch.setattr(script, "SETS", {"some": ["plot eps", sweep], "other": [sweep]})
    log = tmp_path / "runs/results.log"
    assert script.main(["some"]) == 1  # of the first nothing could be drawn, the other is made
    assert (tmp_path / "results/some/eps/digits_mlp-smoke/eps.csv").exists()
    said = log.read_text()
    assert "some: sweep eps, 1 run: 0 finished, 1 to do" in said
    assert "some 1/2 ended with 1 after " in said
    assert "some 2/2 ended with 0 after " in said
    assert script.main(["some", "--plan"]) == 0
    assert "1 run: 1 finished, 0 to do" in log.read_text().removeprefix(said)
    assert script.main(["sme"]) == 2
    assert "sme: no such set; some, other are" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_runs_and_then_the_script(tmp_path, number):
    """Both are told of Ctrl-C by a terminal."""
    child = tmp_path / "child.py"
    child.write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: print('stopped', flush=True))\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('stopped', flush=True))\n"
        "print('begun', flush=True)\n"
        "time.sleep(1)\n"
    )
    code = (
        f"import runpy, sys; main = runpy.run_path({str(ROOT / 'scripts/results.py')!r})['main'];"
        f"main.__globals__['_estimate'] = lambda *_: '';"
        f"main.__globals__['_command'] = lambda _: [sys.executable, {str(child)!r}];"
        f"main(['digits'])"
    )
    env = {**os.environ, "LSEXP_RUNS_DIR": str(tmp_path)}
    script = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while script.stdout.readline() != "begun\n":
        assert script.poll() is None
    os.killpg(script.pid, number)
    out, _ = script.communicate(timeout=20)
    assert script.returncode == 128 + number
    assert "stopped" in out
    assert out.count("begun") == 0  # no other command begins


def test_what_is_to_be_run_is_understood(script, capsys):
    for commands in script.SETS.values():
        for command in commands:
            verb, *words = command.split()
            if verb in ("sweep", "plot"):
                [asked] = ask(words[0], studies.study(words[0], ""), words[1:])
                assert asked.runs, command
            elif verb != "report":
                assert main([verb, *words, "--cfg", "job"]) == 0, command
    capsys.readouterr()


def test_the_readmes_speed_on_a_gpu_is_that_of_results():
    rows = pd.read_csv(ROOT / "results/bench/cuda-h200.csv")

    def best(recipe, kernels, runs):
        chosen = (rows.recipe == recipe) & (rows.kernels == kernels) & (rows.runs_at_once == runs)
        return rows[chosen].images_per_second.max()

    pattern = r"make ([0-9,]+) images/s of MNIST's MLP, ([0-9,]+) of AlexNet and ([0-9,]+) of the"
    typed = [int(number.replace(",", "")) for number in re.search(pattern, README).groups()]
    recipes = ("mnist_mlp", "cifar10_alexnet", "cifar10_resnet56_thin")
    for number, recipe in zip(typed, recipes, strict=True):
        assert number == pytest.approx(best(recipe, "deterministic", 8), rel=0.01)
    thin = [best("cifar10_resnet56_thin", kernels, 6) for kernels in ("fast", "deterministic")]
    assert "trains the thin ResNet-56 a quarter faster" in README
    assert 1.2 < thin[0] / thin[1] < 1.3


def rates(name):
    """Images/s by recipe and way, medians of the rounds, and what part of the limit ours are."""
    found = json.loads((ROOT / "results/bench" / name).read_text())
    middle = {}
    for recipe, rounds in found.items():
        ways = ("conventional", "conventional at once", "lsexp sweep")
        middle[recipe] = {way: statistics.median(one[way] for one in rounds) for way in ways}
        limits = (one["bench"]["recipes"][0]["sweep"]["of_limit"] for one in rounds)
        middle[recipe]["of the limit"] = statistics.median(limits)
    return middle


FAMILY_26, FAMILY_25 = "compare-avx512_bf16.json", "compare-avx512_bf16-family25.json"
AMX = "compare-amx_bf16.json"


@pytest.mark.parametrize("name", [FAMILY_26, FAMILY_25, AMX])
def test_the_readmes_speed_on_a_cpu_is_that_of_results(name):
    table = README.partition(f"`results/bench/{name}`")[2]
    for recipe, of in rates(name).items():
        cells = [f"`{recipe}`"]
        cells += [f"{of[way]:,.0f}" for way in ("conventional", "conventional at once")]
        cells += [f"{of['lsexp sweep']:,.0f}", f"{of['lsexp sweep'] / of['conventional']:.1f}"]
        row = f"| {' | '.join(cells)} | {100 * of['of the limit']:.0f} % |"
        assert row in table.partition("`results/bench/")[0], row


def test_the_minutes_of_the_recipes():
    """Those that are computed, from the sweeps' speed; those of runs in results/, from these."""

    def computed(recipe, budget="cpu", of=None):
        [(config, _)] = train_configs([f"recipe={recipe}", f"budget={budget}"])
        speed = rates(FAMILY_26)[of or recipe]["lsexp sweep"] / 2  # two at once
        return round(config.train.steps * config.train.batch_size / speed / 60)

    def taken(name, role="", **where):
        runs = pd.read_csv(ROOT / "results" / name / "runs.csv")
        runs = runs[runs.role == role] if role else runs
        for column, value in where.items():
            runs = runs[runs[column] == value]
        return round(runs.seconds.median() / 60)

    assert f"| {computed('mnist_mlp')} (`budget=paper`: {computed('mnist_mlp', 'paper')}," in README
    wide, thin = "cifar10_resnet56", "cifar10_resnet56_thin"
    hundred = "cifar100_resnet56_thin"
    typed = re.search(r"\| (\d+) \(CIFAR-100: (\d+)\), computed \|", README).groups()
    both = [computed(wide), computed("cifar100_resnet56", of=wide)]
    assert [int(number) for number in typed] == pytest.approx(both, rel=0.03)
    assert f"| {computed(thin)} (CIFAR-100: {computed(hundred, of=thin)}), computed |" in README
    grid = "mnist/distillation/mnist_distill-cpu-grid=full"
    assert f"| {taken(grid, 'student')}, its teachers {taken(grid, 'teacher')} * |" in README


def imported(path):
    """Modules of lsexp (`data` of `lsexp.data.splits`) that a file of it imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("lsexp."))


def test_a_module_imports_from_its_row_of_the_readme_and_those_above():
    shape = (ROOT / "README.md").read_text().partition("The shape is an hourglass")[2]
    rows = [re.findall(r"`(\w+)`", cells) for cells in re.findall(r"^\| (`.+?) \|", shape, re.M)]
    row_of = {module: number for number, row in enumerate(rows) for module in row}
    files = [path for path in (ROOT / "lsexp").rglob("*.py") if path.parent != ROOT / "lsexp"]
    files += [path for path in (ROOT / "lsexp").glob("*.py") if path.stem != "__init__"]
    modules = {
        path: path.relative_to(ROOT / "lsexp").parts[0].removesuffix(".py") for path in files
    }
    assert {*modules.values()} == {*row_of}
    below = {
        (module, other)
        for path, module in modules.items()
        for other in imported(path)
        if row_of[other] > row_of[module]
    }
    assert below == {("compose", "studies")}
