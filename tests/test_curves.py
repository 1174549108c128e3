import csv
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from support import TINY

from lsexp.cli import main
from lsexp.curves import choose, draw, read_history


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = [*TINY, "train.epochs=5", f"runs_dir={folder}", "-m", "loss.eps=0,0.1", "seed=0,1"]
    assert main(["train", *words]) == 0
    assert main(["train", *TINY, f"runs_dir={folder}", "data.split=full", "model.widths=[8]"]) == 0
    return folder


def plot(capsys, runs, tmp_path, *words):
    code = main(["plot", "curves", f"runs_dir={runs}", f"out_dir={tmp_path / 'out'}", *words])
    out, err = capsys.readouterr()
    return code, [Path(line) for line in out.splitlines()], err


def test_figure_and_numbers_are_written_and_their_paths_printed(capsys, runs, tmp_path):
    code, paths, _ = plot(capsys, runs, tmp_path, "figure.format=png,pdf,svg", "data.split=holdout")
    folder = tmp_path / "out" / "curves" / "digits_mlp-smoke-data.split=holdout"
    assert code == 0
    assert paths == [folder / f"curves.{ending}" for ending in ("png", "pdf", "svg", "csv")]
    assert all(path.stat().st_size > 500 for path in paths)
    with paths[-1].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 5
    assert {(row["eps"], row["seed"]) for row in rows} == {
        (eps, seed) for eps in ("0.0", "0.1") for seed in ("0", "1")
    }
    assert {"run", "epoch", "step", "train_loss", "val_nll", "val_accuracy"} <= set(rows[0])


def test_what_is_drawn_is_the_history(runs):
    entries = choose(str(runs), ["loss.eps=0.1", "seed=1"])
    rows = read_history(entries[0])
    figure = draw([(entries[0], rows)])
    loss, nll, accuracy = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [row["train_loss"] for row in rows]
    assert nll.lines[0].get_ydata().tolist() == [row["val_nll"] for row in rows]
    assert accuracy.lines[0].get_ydata().max() == max(100 * row["val_accuracy"] for row in rows)
    assert [axis.get_xlabel() for axis in figure.axes] == ["epochs"] * 3
    assert "(nats)" in nll.get_ylabel()  # the loss may be scaled


def test_seeds_share_a_series_and_eps_tells_them_apart(runs):
    entries = choose(str(runs), ["data.split=holdout"])
    figure = draw([(entry, read_history(entry)) for entry in entries])
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert len(colours) == 4
    assert len(set(colours)) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["eps 0.0 (n = 2)", "eps 0.1 (n = 2)"]


def test_runs_without_val_leave_their_panels_empty_and_say_so(capsys, runs, tmp_path):
    code, paths, _ = plot(capsys, runs, tmp_path, "data.split=full")
    assert code == 0
    assert paths[0].exists()
    entries = choose(str(runs), ["data.split=full"])
    figure = draw([(entry, read_history(entry)) for entry in entries])
    assert [len(axis.lines) for axis in figure.axes] == [1, 0, 0]


def test_without_words_the_newest_runs_are_taken_and_said(capsys, runs, tmp_path):
    code, _, err = plot(capsys, runs, tmp_path)
    assert code == 0
    assert "recipe=digits_mlp budget=smoke" in err


def test_runs_that_differ_in_anything_but_the_seed_are_series_of_their_own(runs):
    entries = choose(str(runs), ["loss.eps=0", "seed=0"])
    figure = draw([(entry, read_history(entry)) for entry in entries])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 2
    assert any("widths [8]" in label and "split full" in label for label in labels)


def test_stale_runs_are_not_drawn(capsys, runs, tmp_path, monkeypatch):
    monkeypatch.setattr("lsexp.runs.catalog.RESULT_VERSION", 10**6)
    code, _, err = plot(capsys, runs, tmp_path)
    assert code == 1
    assert "5 stale runs left out" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["figure.format=gif"], "figure.format=gif: must be png or pdf or svg"),
        (["loss.eps=0.7"], "loss.eps=0.7: no run with a history"),
        (["--large"], "--large: no such flag"),
        (["loss.esp=0"], "did you mean loss.eps?"),
    ],
)
def test_wrong_words(capsys, runs, tmp_path, words, part):
    code, paths, err = plot(capsys, runs, tmp_path, *words)
    assert code in (1, 2)
    assert paths == []
    assert part in err


def test_another_choice_of_runs_has_a_folder_of_its_own(capsys, runs, tmp_path):
    chosen = ["loss.eps=0", "loss.eps=0.1"]
    found = {plot(capsys, runs, tmp_path, "recipe=digits_mlp", word)[1][0] for word in chosen}
    assert {path.parent.name for path in found} == {f"digits_mlp-smoke-{word}" for word in chosen}


def test_a_folder_that_cannot_be_written_is_told(capsys, runs):
    assert main(["plot", "curves", f"runs_dir={runs}", "out_dir=/dev/null/x"]) == 2
    assert "out_dir=/dev/null/x: /dev/null is no folder" in capsys.readouterr().err


def test_an_unknown_figure(capsys):
    assert main(["plot", "curvs"]) == 2
    assert "did you mean curves?" in capsys.readouterr().err


def test_a_damaged_history_is_told_by_its_file(capsys, runs, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(runs, copy)
    file = next(copy.glob("*eps0.1-seed1*/history.csv"))
    for content in ("", "a,b\n1,2\n", "epoch,train_loss\n1,x\n", "\0"):
        file.write_text(content)
        code, _, err = plot(capsys, copy, tmp_path)
        assert code == 0  # the others are drawn
        assert f"left out: {file}: changed since it was published" in err


def test_data_of_ones_own_are_told_apart_and_no_legend_is_cut_off(runs):
    """Whatever is said of the runs: its lines are as wide as the figure at most."""
    [entry] = choose(str(runs), ["loss.eps=0.1", "seed=1"])
    entries = [entry]
    for number in range(4):
        own = {"data.name": "npz", "data.path": f"{number}-{'x' * 40 * number}.npz"}
        entries.append(replace(entry, config={**entry.config, **own}))
    figure = draw([(one, read_history(one)) for one in entries])
    [legend] = figure.legends
    labels = [text.get_text().replace("\n", "") for text in legend.get_texts()]
    assert labels[0] == "data digits (n = 1)"
    assert labels[1] == "data npz, path 0-.npz (n = 1)"
    assert len({line.get_color() for line in figure.axes[0].lines}) == 5
    assert legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width < (
        figure.bbox.width
    )
