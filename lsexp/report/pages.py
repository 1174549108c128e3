"""A report's sections as one HTML page that needs nothing else, and as Markdown beside figures."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import jinja2

from lsexp.report.content import Section, overview

MARKS = {"supported": "✓", "contradicted": "✗", "inconclusive": "≈", "not tested": "–"}
"""Beside the words, for those who tell colours badly."""


def as_html(sections: Sequence[Section], command: str) -> str:
    """The page; everything that is shown is escaped, figures apart."""
    return _environment(escape=True).get_template("page.html.j2").render(_values(sections, command))


def as_markdown(sections: Sequence[Section], command: str) -> str:
    """The same as text; figures are at figures/<name>.svg beside it."""
    text = _environment(escape=False).get_template("page.md.j2").render(_values(sections, command))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _values(sections: Sequence[Section], command: str) -> dict[str, object]:
    claims = list(overview(sections))
    counts = dict.fromkeys(MARKS, 0)
    for _, _, claim in claims:
        counts[claim.verdict] += 1
    return {
        "sections": sections,
        "claims": claims,
        "counts": counts,
        "marks": MARKS,
        "command": command,
        "version": version("lsexp"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


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
    return made


def _text(value: str) -> str:
    """Free text in Markdown: nothing of it is markup.

    >>> _text("a_b <i> *c*")
    'a\\\\_b &lt;i&gt; \\\\*c\\\\*'
    """
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", html.escape(value, quote=False))


def _cell(value: str) -> str:
    """A cell of a Markdown table, on one line."""
    return _text(" ".join(value.split())).replace("+-", "±")
