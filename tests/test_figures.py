"""What every figure shares: fonts for any script, and the axis of training steps."""

import io
import warnings
from dataclasses import replace

import pytest
from matplotlib import font_manager

from lsexp import figures


def saved(text):
    """A title as it is written, and its fonts; warnings are errors."""
    figure, [[axis]] = figures.grid(1, 1)
    title = axis.set_title(text)
    figures._find_fonts(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    return title.get_text(), title.get_fontfamily()


def test_characters_that_our_font_lacks_are_of_another_that_is_installed():
    ours, other = (
        set(font_manager.get_font(font_manager.findfont(name)).get_charmap())
        for name in ("DejaVu Sans", "STIXGeneral")
    )
    word = f"a{chr(min(other - ours))}ß"
    text, families = saved(word)
    assert text == word
    assert len(families) > 1
    assert saved("abß") == ("abß", ["sans-serif"])


def test_characters_that_no_font_has_are_codes_and_said_once(monkeypatch, capsys):
    figures._families_with.cache_clear()
    fonts = [one for one in font_manager.fontManager.ttflist if one.name == "DejaVu Sans"]
    fonts.append(replace(fonts[0], fname="gone.ttf", name="Gone"))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    for _ in range(2):
        assert saved("猫 b")[0] == "U+732B b"
    assert capsys.readouterr().err.count("no font here has 猫: ") == 1


def test_the_first_steps_and_the_last_half_of_training_are_both_seen():
    figure, [[axis]] = figures.grid(1, 1)
    axis.plot([0, 100, 10_000], [1, 2, 3])
    figures.over_training(axis, 10_000)
    start, early, half, end = axis.transData.transform([(x, 1) for x in (0, 100, 5_000, 10_000)])[
        :, 0
    ]
    assert (early - start) / (end - start) == pytest.approx(0.1)
    assert (half - start) / (end - start) == pytest.approx(0.5**0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.drawn(figure, "png")
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["0", "400", "1,600", "3,600", "6,400", "10,000"]
