"""The study of projections on made-up networks: classes, numbers, findings, the figure."""

from pathlib import Path

import numpy as np
import pytest

from lsexp.config import TrainConfig
from lsexp.errors import UserError
from lsexp.measure import Measured, Measurement
from lsexp.runs.catalog import Entry
from lsexp.studies import Trained, projections
from lsexp.studies.projections import Config

NAMES = ("airplane", "automobile", "bird", "cat")
IMAGES = {"train": [1, 1, 1, 1], "val": [1, 1, 1, 0]}


def network(noise, scale=1.0, examples=12, seed=0, held=2.0):
    """(train, val) of a network whose features are `scale` times the template plus noise, on val
    `held` times as much."""
    rng = np.random.default_rng(seed)
    weight = np.eye(4, 6, dtype=np.float32)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), examples))
    found = {}
    for split, factor in (("train", 1.0), ("val", held)):
        labels = labels[::-1]  # another class comes first
        features = scale * weight[labels] + factor * noise * rng.normal(size=(len(labels), 6))
        features = features.astype(np.float32)
        bias = np.zeros(4, np.float32)
        found[split] = Measured(
            features @ weight.T, features, labels, np.arange(len(labels)), weight, bias
        )
    return found


def made(eps, seed, found, *, learnt=0.99, data="cifar10", names=NAMES):
    entry = Entry(Path(f"run-{eps}-{seed}"), "finished")
    entry.config = {"data.name": data, "budget": "cpu"}
    accuracy = {"accuracy": learnt}
    config = {"data.name": data}
    entry.metrics = {
        "classes": list(names), "config": config, "train": accuracy, "val": accuracy
    }  # fmt: skip
    measured = {Measurement(split, (0, 1, 2), 100): one for split, one in found.items()}
    return Trained({"eps": eps, "seed": seed}, entry, measured)


def several(**options):
    """Three seeds, hard and smoothed: the smoothed are smaller and tighter."""
    return [
        made(eps, seed, network(noise * (1 + seed / 10), scale, seed=seed), **options)
        for seed in range(3)
        for eps, noise, scale in ((0.0, 0.5, 8.0), (0.1, 0.01, 1.0))
    ]


def analyzed(trained, **keys):
    return projections.analyze(Config(**keys), trained, "cifar10_alexnet")


def value(result, metric, split="train", eps=0.0):
    rows = result.tables["projections"]
    [found] = [r for r in rows if (r["metric"], r["split"], r["eps"]) == (metric, split, eps)]
    return found


def finding(result, claim):
    [found] = [one for one in result.findings if one.claim is claim]
    return found


@pytest.mark.parametrize(
    ("classes", "data", "expected"),
    [
        (None, "cifar10", (0, 1, 2)),
        (None, "mine", (0, 1, 2)),
        (["bird", "cat", "0"], "cifar10", (2, 3, 0)),
    ],
)
def test_classes_are_the_papers_or_those_typed_by_name_or_number(classes, data, expected):
    trained = [made(0.0, 0, network(1.0), data=data)]
    asked = projections.measurements(Config(classes=classes), trained)
    assert asked == [Measurement(split, expected, 100) for split in ("train", "val")]


def test_a_class_that_is_called_like_a_number_is_meant_by_it():
    trained = [made(0.0, 0, network(1.0), data="odd", names=["2", "1", "0"])]
    [asked, _] = projections.measurements(Config(classes=["0", "1", "2"]), trained)
    assert asked.classes == (2, 1, 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["bird", "cat"], "classes=bird,cat: must be three different classes"),
        (["bird", "cat", "2"], "must be three different classes, not bird, cat, bird"),
        (["bird", "cat", "4"], "cifar10 has no class 4; it has 4, by name .* or number, 0 to 3"),
        (["bird", "cat", "airplan"], "did you mean airplane"),
    ],
)
def test_other_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        projections.measurements(Config(classes=classes), [made(0.0, 0, network(1.0))])


def test_two_classes_have_no_plane():
    trained = [made(0.0, 0, network(1.0), data="two", names=("a", "b"))]
    with pytest.raises(UserError, match="two has 2 classes; a plane needs three"):
        projections.measurements(Config(), trained)


def test_without_images_held_out_only_train_is_measured():
    one = made(0.0, 0, network(1.0))
    one.entry.metrics["val"] = None
    assert [asked.split for asked in projections.measurements(Config(), [one])] == ["train"]


def test_numbers_by_hand():
    """No noise: features are the templates times two."""
    result = analyzed([made(0.0, 0, network(0.0, scale=2.0))])
    root = np.sqrt(2)
    assert value(result, "side_ratio", "")["value"] == pytest.approx(1)
    assert value(result, "side airplane-bird", "")["value"] == pytest.approx(root)
    assert value(result, "scatter_ratio_plane")["value"] == pytest.approx(0, abs=1e-12)
    # Corners of a triangle with sides 2 sqrt 2 lie sqrt(8 / 3) from its centre.
    assert value(result, "extent_plane")["value"] == pytest.approx(np.sqrt(8 / 3))
    assert value(result, "variance_kept")["value"] == pytest.approx(1)
    # [2 e_k; 1] against [e_k; 0] and [e_j; 0].
    assert value(result, "distance_own")["value"] == pytest.approx(root)
    assert value(result, "distance_other")["value"] == pytest.approx(np.sqrt(6))
    assert value(result, "distance_other_spread")["value"] == pytest.approx(0, abs=1e-7)


def stretched(factor):
    """No noise; features of bird are so many times its template: means e_0, e_1 and factor e_2."""
    found = network(0.0)
    for split, one in found.items():
        longer = one.features_ND * np.where(one.labels_N == 2, factor, 1)[:, None]
        found[split] = one._replace(features_ND=longer.astype(np.float32))
    return found


def test_sides_of_the_clusters_by_hand():
    result = analyzed([made(0.0, 0, stretched(3))])
    assert value(result, "side_ratio", "")["value"] == pytest.approx(1)
    # In the plane, which (1, 1, 1) is normal to: |e_0 - e_1|^2 = 2, |e_0 - 3 e_2|^2 = 10 - 4 / 3.
    expected = np.sqrt((10 - 4 / 3) / 2)
    assert value(result, "clusters_side_ratio")["value"] == pytest.approx(expected)


def test_clusters_may_become_regular_where_templates_always_were():
    trained = [
        made(eps, seed, stretched(factor * (1 + seed / 1000)))
        for seed in range(3)
        for eps, factor in ((0.0, 3.0), (0.1, 1.0))
    ]
    found = finding(analyzed(trained), projections.REGULAR)
    assert found.verdict == "supported"
    assert found.value == pytest.approx(-np.log10(np.sqrt((10 - 4 / 3) / 2)), abs=0.01)
    assert finding(analyzed(trained), projections.EQUIDISTANT).verdict == "inconclusive"


def test_intervals_are_over_seeds_and_one_seed_has_none():
    row = value(analyzed(several()), "extent_plane")
    assert (row["n"], row["interval"]) == (3, "seeds")
    assert row["low"] < row["value"] < row["high"]
    one = analyzed([made(0.0, 0, network(1.0))])
    assert value(one, "extent_plane")["low"] is None
    assert "one seed: nothing can be said" in one.notes[-1]


def test_findings_follow_the_declared_rules():
    result = analyzed(several())
    assert finding(result, projections.TIGHTER).verdict == "supported"
    assert finding(result, projections.SMALLER).verdict == "supported"
    spread = finding(result, projections.SPREAD)
    assert spread.verdict == "supported"
    assert spread.value == pytest.approx(np.log10(4), abs=0.3)  # twice the noise
    equidistant = finding(result, projections.EQUIDISTANT)
    assert (equidistant.verdict, equidistant.value) == ("inconclusive", 0)  # all alike
    over = [one.over for one in (spread, finding(result, projections.TIGHTER), equidistant)]
    assert over == ["both", "seeds", ""]


def test_that_clusters_spread_is_judged_over_images_too():
    """Seeds that see the same images in the same way agree, whatever other images would show."""
    alike = [
        made(eps, seed, network(0.1 * (1 + seed / 1000), examples=20, held=1.1))
        for seed in range(3)
        for eps in (0.0, 0.1)
    ]
    found = finding(analyzed(alike), projections.SPREAD)
    assert found.verdict == "inconclusive"
    assert found.high - found.low > 0.1
    dead = {s: one._replace(features_ND=np.zeros((36, 6))) for s, one in network(0.1).items()}
    points = [made(0.0, seed, network(0.1)) for seed in range(3)]
    points += [made(0.1, seed, dead) for seed in range(3)]
    found = finding(analyzed(points), projections.SPREAD)
    assert found.because == "a cluster has hardly any extent"
    found = finding(analyzed(points), projections.REGULAR)
    assert found.because == "a side or a cluster has no extent at all"
    few = [made(eps, seed, network(0.1, examples=9)) for seed in range(3) for eps in (0.0, 0.1)]
    found = finding(analyzed(few), projections.SPREAD)
    assert (found.verdict, found.because[:24]) == ("not tested", "needs 10 images of each ")


@pytest.mark.parametrize(
    ("trained", "keys", "because"),
    [
        (several(learnt=0.9), {}, "right on 0.900 of their training images, not 0.95"),
        (several(), {"method": "tsne"}, "the claims are of method=paper"),
        (several(), {"method": "templates_pca"}, "the claims are of method=paper"),
        (several(), {"classes": ["0", "2", "1"]}, "the claims are of the default classes"),
        ([made(0.0, 0, network(1.0))], {}, "needs runs at eps 0 and 0.1 of the same seed"),
    ],
)
def test_what_the_gate_does_not_pass_is_not_tested(trained, keys, because):
    for found in analyzed(trained, **keys).findings:
        assert found.verdict == "not tested"
        assert because in found.because


def test_elsewhere_than_on_cifar_ten_seeds_decide():
    found = finding(analyzed(several(data="mnist")), projections.TIGHTER)
    assert (found.verdict, found.because) == ("inconclusive", "decided from 10 seeds on")


def test_templates_on_a_line_are_told_with_the_run():
    found = network(1.0)
    flat = {split: one._replace(weight_KD=np.zeros((4, 6))) for split, one in found.items()}
    with pytest.raises(UserError, match="the three templates lie on a line"):
        analyzed([made(0.0, 0, flat)])
    result = analyzed([made(0.0, 0, flat), made(0.0, 1, found)])
    assert "run-0.0-0: the three templates lie on a line" in result.notes[-1]
    assert {row["seed"] for row in result.tables["points"]} == {1}
    assert "seed 1" in result.title
    drawn(result)
    with pytest.raises(UserError, match=r"run-0\.0-0: the three templates lie on a line"):
        analyzed([made(0.0, 0, flat), made(0.0, 1, found)], shown_seed=0)


def test_points_and_templates_are_tabled_for_every_network():
    result = analyzed(several())
    assert len(result.tables["points"]) == 6 * 2 * 36
    first = result.tables["points"][0]
    assert (first["class"], first["split"]) == ("airplane", "train")
    assert len(result.tables["templates"]) == 6 * 3


def drawn(result, **keys):
    figure = projections.draw(Config(**keys), [result])["projections"]
    figure.draw_without_rendering()  # lays out
    return figure


def test_the_figure_has_four_panels_of_one_scale_with_points_and_templates():
    figure = drawn(analyzed(several()))
    axes = figure.axes
    titles = ["training, eps 0", "validation, eps 0", "training, eps 0.1", "validation, eps 0.1"]
    assert [axis.get_title() for axis in axes] == titles
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in axes}) == 1
    low, high = axes[0].get_xlim()
    assert high - low == pytest.approx(np.ptp(axes[0].get_ylim()))
    assert len(axes[1].collections) == 6  # images and a template of each class
    insets = [len(axis.child_axes) for axis in axes]
    assert insets == [0, 0, 1, 1]  # the smoothed pictures are small
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["airplane", "automobile", "bird", "templates"]
    assert "the paper's" in figure.get_suptitle()


@pytest.mark.parametrize("method", ["paper", "tsne"])
def test_a_class_has_one_colour_everywhere(method):
    figure = drawn(analyzed(several(), method=method), method=method)
    legend = figure.axes[0].get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    for axis in figure.axes:
        shown = {marks.get_label(): marks for marks in axis.collections}
        for name, handle in zip(names[:3], legend.legend_handles, strict=False):
            found, expected = shown[name].get_facecolor(), handle.get_facecolor()
            np.testing.assert_array_equal(found[0][:3], expected[0][:3])


def test_classes_that_lie_on_each_other_have_no_ratio():
    found = network(1.0)
    dead = {s: one._replace(features_ND=np.zeros((36, 6), np.float32)) for s, one in found.items()}
    result = analyzed([made(0.0, 0, dead)])
    assert "scatter_ratio" not in {row["metric"] for row in result.tables["projections"]}
    drawn(result)
    with pytest.raises(UserError, match="not all alike"):
        analyzed([made(0.0, 0, dead)], method="tsne")
    others = analyzed([made(0.0, 0, dead), *(made(0.0, seed, found) for seed in (1, 2))])
    assert value(others, "scatter_ratio_plane")["n"] == 2


def test_without_val_there_are_no_empty_panels():
    trained = several()
    for one in trained:
        del one.measured[Measurement("val", (0, 1, 2), 100)]
    assert len(drawn(analyzed(trained)).axes) == 2


def test_enlarged_pictures_lie_over_no_point():
    for scale in (1.0, 1.5, 2.0, 3.0):
        trained = [made(0.0, 0, network(0.5, 8.0)), made(0.1, 0, network(0.3, scale))]
        for axis in drawn(analyzed(trained)).axes:
            for inset in axis.child_axes:
                box = inset.get_window_extent()
                for marks in axis.collections[:6]:
                    at = axis.transData.transform(marks.get_offsets())
                    assert not any(box.contains(*place) for place in at)


def test_runs_that_do_not_tell_their_classes_have_numbers(monkeypatch):
    one = made(0.0, 0, network(1.0), data="old")
    del one.entry.metrics["classes"]
    logits = {"test.logits": np.zeros((1, 4))}
    monkeypatch.setattr(Trained, "outputs", property(lambda _self: logits))
    [asked, _] = projections.measurements(Config(), [one])
    assert asked.classes == (0, 1, 2)


def test_what_could_not_be_drawn_is_refused_before_training():
    projections.check(Config(), "cifar10", NAMES, TrainConfig(), IMAGES)
    with pytest.raises(UserError, match="has no class dog"):
        projections.check(
            Config(classes=["dog", "cat", "bird"]), "cifar10", NAMES, TrainConfig(), IMAGES
        )
    classes = ["bird", "cat", "airplane"]
    with pytest.raises(UserError, match="val has 0 images of class cat, and 1 of each are needed"):
        projections.check(Config(classes=classes), "cifar10", NAMES, TrainConfig(), IMAGES)
    alone = {**IMAGES, "val": [0, 0, 0, 0]}  # nothing is held out
    projections.check(Config(classes=classes), "cifar10", NAMES, TrainConfig(), alone)
    with pytest.raises(UserError, match="shown_seed=9: must be one of seeds: 0, 1"):
        projections.check(
            Config(seeds=[0, 1], shown_seed=9), "cifar10", NAMES, TrainConfig(), IMAGES
        )


def test_tsne_is_named_and_has_no_scale_and_no_templates():
    figure = drawn(analyzed(several(), method="tsne"), method="tsne")
    assert "t-SNE" in figure.get_suptitle()
    assert len(figure.axes[0].collections) == 3
    assert list(figure.axes[0].get_xticks()) == []


def test_rows_have_a_scale_each():
    small = [made(0.0, 0, network(0.1, 1.0)), made(0.1, 0, network(0.1, 1.0))]
    results = [analyzed(several()), analyzed(small)]
    figure = projections.draw(Config(), results)["projections"]
    windows = [axis.get_xlim() for axis in figure.axes]
    assert windows[0] == windows[3] != windows[4]
    assert windows[4] == windows[7]


def test_the_seed_that_is_drawn():
    trained = several()[2:]  # seed 0 is missing
    runs = {row["seed"] for row in analyzed(trained).tables["runs"] if row["shown"]}
    assert runs == {1}
    assert "seed 2" in analyzed(trained, shown_seed=2).title
    with pytest.raises(UserError, match="shown_seed=0: must be one of those trained: 1, 2"):
        analyzed(trained, shown_seed=0)


def test_of_another_sweeps_eps_those_of_the_figure_are_drawn():
    assert projections.drawn([0.0, 0.05, 0.1, 0.3]) == [0.0, 0.1]
    assert projections.drawn([0.3, 0.0, 0.2]) == [0.0, 0.3]
    assert projections.drawn([0.2]) == [0.2]


def test_accuracies_of_others_come_first_in_the_table():
    summary = analyzed(several(learnt=0.97)).summary
    assert [row[:4] for row in summary[:5]] == [
        ["eps", "split", "seeds", "accuracy %"],
        ["0 paper", "val", "", "86.8 +- 0.2"],
        ["0.1 paper", "val", "", "86.7 +- 0.3"],
        ["0 public reproduction", "test", "1", "85.0"],
        ["0.1 public reproduction", "test", "1", "85.5"],
    ]
    assert summary[5][:4] == ["0", "train", "3", "97.00"]
    assert {len(row) for row in summary} == {len(summary[0])}
