"""The style that every figure shares, and how a figure is written.

Colours tell apart without colour vision (Okabe and Ito); series differ in line style too.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from lsexp.errors import printable
from lsexp.files import replace_file
from lsexp.text import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = ("o", "^", "s", "D", "v", "P")
FORMATS = ("png", "pdf", "svg")

STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "figure.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "lsexp",  # equal figures are equal files
}
ABOVE: Any = {"fontsize": 7, "loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
"""A legend above its axes, where it covers no bar."""


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that makes figures, in our style."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def grid(
    rows: int,
    columns: int,
    *,
    width: float = 3.6,
    height: float = 3.2,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[list[Any]]]:
    """A figure with rows of axes; sizes of each in inches.

    heights: of the rows, relative to `height`; None: all 1.
    """
    from matplotlib.figure import Figure

    heights = heights or [1.0] * rows
    size = (width * columns, height * sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    return figure, [list(row) for row in axes]


def legend_below(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], *, columns: int, fontsize: float
) -> None:
    """A legend below all axes, in at most so many columns as the figure is wide enough for; labels
    that are longer than a line are wrapped."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    longest = int(72 * figure.get_figwidth() / (0.6 * fontsize)) - 10  # in characters
    wrapped = [textwrap.fill(label, longest) for label in labels]
    look: Any = {"loc": "outside lower center", "fontsize": fontsize}
    for count in range(min(columns, len(wrapped)), 0, -1):
        legend = figure.legend(handles, wrapped, ncols=count, **look)
        _find_fonts(figure)
        if count == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return
        legend.remove()


def logarithmic(axis: Any) -> None:
    """A logarithmic y axis with as many labels as there is room for, whatever it spans."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def beside(
    axis: Any,
    text: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    color: str,
    **look: Any,
) -> None:
    """A small text some points of type from a point, to be read over other curves too."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=1.5, foreground="white")]
    look = {"textcoords": "offset points", "fontsize": 6, "path_effects": halo, **look}
    axis.annotate(text, point, xytext=offset, color=color, **look)


def over_training(axis: Any, steps: int) -> None:
    """A horizontal axis of training steps, from 0 to `steps`, spaced as their square roots: on a
    logarithmic one the last half, where networks collapse, would be a sliver, on a linear one the
    first hundred steps."""
    import numpy as np

    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set_xlim(0, 1.02 * steps)
    at = sorted({float(f"{steps * (part / 5) ** 2:.2g}") for part in range(6)})
    axis.set_xticks(at, [f"{round(step):,}" for step in at])


def plain(name: str) -> str:
    """A user's name as matplotlib shows it: no mathematics, and not left out of legends.

    >>> plain("_a$b")
    ' _a\\\\$b'
    """
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def series_style(number: int) -> dict[str, Any]:
    """Colour and line of the `number`-th series, from 0."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINES[number % len(LINES)],
    }


def marker_of(number: int) -> str:
    """Marker of the points of the `number`-th series, from 0."""
    return MARKERS[number % len(MARKERS)]


def _find_fonts(figure: Figure) -> None:
    """Give texts a font that has their characters, where ours has not: names of classes may be in
    any script. Characters that no installed font has become their codes, which is said. Not of
    labels of ticks, which are written anew when they are drawn."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    ours = get_font(findfont(FontProperties())).get_charmap() if texts else {}
    lacking = {c for text in texts for c in text.get_text() if ord(c) not in ours and c != "\n"}
    if not lacking:
        return
    families, left = _families_with("".join(sorted(lacking)))
    for text in texts:
        if lacking & set(text.get_text()):
            text.set_fontfamily([*text.get_fontfamily(), *families])
            text.set_text(text.get_text().translate({ord(c): f"U+{ord(c):X}" for c in left}))


USUAL = ("normal", "400")
"""Style and weight of a font that is neither slanted nor bold."""


@functools.cache
def _families_with(characters: str) -> tuple[list[str], str]:
    """Installed fonts that have these between them, and those that none has, which are told."""
    from matplotlib.font_manager import fontManager, get_font

    families: list[str] = []
    left = set(characters)
    usual_first = sorted(fontManager.ttflist, key=lambda f: (f.style, str(f.weight)) != USUAL)
    for font in usual_first:
        if left and "Last Resort" not in font.name:  # which has boxes for all
            has: set[str] = set()
            with contextlib.suppress(OSError, RuntimeError):  # gone since they were listed
                has = {c for c in left if ord(c) in get_font(font.fname).get_charmap()}
            families += [font.name] * bool(has)
            left -= has
    if left:
        say(
            f"no font here has {printable(''.join(sorted(left)))}: figures have their codes "
            f"instead; an installed font with them (Noto's, say) is used"
        )
    return families, "".join(left)


def write_figure(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write `path` with each ending; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for ending in formats:
        target = path.with_suffix(f".{ending}")
        replace_file(target, drawn(figure, ending))
        written.append(target)
    return written


def drawn(figure: Figure, ending: str) -> bytes:
    """The file of a figure."""
    import matplotlib as mpl

    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        _find_fonts(figure)
        metadata = {"Date": None} if ending == "svg" else None
        figure.savefig(content, format=ending, metadata=metadata)
    return content.getvalue()


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """The numbers of a figure as CSV; empty cells for None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, text.getvalue())
    return path
