"""The tally: which faults happened, and how many were survived."""

from collections import Counter

import pytest


@pytest.fixture
def happened(record_property):
    """Called with a kind of fault that has happened in the test."""
    return lambda kind: record_property("fault", kind)


def pytest_terminal_summary(terminalreporter):
    tally = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, kind in report.user_properties if report.when == "call" else []:
                if name == "fault":
                    tally.setdefault(kind, Counter())[outcome] += 1
    if not tally:
        return
    terminalreporter.section("faults")
    total = Counter()
    for kind, counts in sorted(tally.items()):
        total += counts
        terminalreporter.write_line(f"{kind:<60} {counts.total():>5}, survived {counts['passed']}")
    terminalreporter.write_line(f"{'all':<60} {total.total():>5}, survived {total['passed']}")
