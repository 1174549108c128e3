"""A report's sections as one HTML page that needs nothing else, and as Markdown beside figures."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import jinja2

from lsexp.report.content import WHOSE, Section, overview

MARKS = {"supported": "✓", "contradicted": "✗", "inconclusive": "≈", "not tested": "–"}
"""Beside the words, for those who tell colours badly."""


def as_html(sections: Sequence[Section], command: str, missing: Sequence[str] = ()) -> str:
    """The page; everything that is shown is escaped, figures apart.

    Args:
        command: that was typed; missing: lines on what could not be drawn.
    """
    template = _environment(escape=True).get_template("page.html.j2")
    return template.render(_values(sections, command, missing))


def as_markdown(sections: Sequence[Section], command: str, missing: Sequence[str] = ()) -> str:
    """The same as text; figures are at figures/<name>.svg beside it."""
    template = _environment(escape=False).get_template("page.md.j2")
    text = template.render(_values(sections, command, missing))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _values(sections: Sequence[Section], command: str, missing: Sequence[str]) -> dict[str, object]:
    claims = list(overview(sections))
    # Of what the paper shows first, and apart: of others a verdict says what holds there.
    counts = {
        whose: Counter(claim.verdict for _, _, claim in claims if claim.whose == whose)
        for whose in WHOSE
        if any(claim.whose == whose for _, _, claim in claims)
    }
    return {
        "sections": sections,
        "claims": claims,
        "counts": counts,
        "whose": WHOSE,
        "marks": MARKS,
        "command": command,
        "missing": missing,
        "version": _version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _version() -> str:
    try:
        return version("lsexp")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""


def _environment(*, escape: bool) -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("lsexp", "report"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["plus"] = lambda text: text.replace("+-", "±")
    made.filters["cell"] = _cell
    made.filters["text"] = _text
    made.filters["code"] = _code
    return made


def _text(value: str) -> str:
    """Free text in Markdown, on one line: nothing of it is markup, nor mathematics.

    >>> _text("a_b <i> *c*")
    'a\\\\_b &lt;i&gt; \\\\*c\\\\*'
    """
    line = " ".join(value.split())  # what begins another may be a heading or a list
    return re.sub(r"([\\`*_\[\]#|$~])", r"\\\1", html.escape(line, quote=False))


def _cell(value: str) -> str:
    """A cell of a Markdown table, on one line."""
    return _text(value).replace("+-", "±")


def _code(value: str) -> str:
    """Words as they are typed, in Markdown, on one line.

    >>> _code("a `b`")
    '`` a `b` ``'
    """
    line = " ".join(value.split())
    longest = max((len(ticks) for ticks in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"`{line}`"
