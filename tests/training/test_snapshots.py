"""When weights are kept."""

from hypothesis import given
from hypothesis import strategies as st

from lsexp.training.snapshots import snapshot_steps


@given(steps=st.integers(1, 10**6), count=st.integers(0, 100))
def test_the_start_is_among_them_the_end_is_not_and_they_are_at_most_so_many(steps, count):
    found = snapshot_steps(steps, count)
    assert found == sorted(set(found))
    assert len(found) <= max(0, count - 1)
    assert all(0 <= step < steps for step in found)
    assert (0 in found) == (count >= 2)


def test_where_steps_are_plenty_there_are_as_many_as_asked_for():
    for count in range(2, 60):
        assert len(snapshot_steps(10**6, count)) == count - 1


def test_early_ones_are_spaced_by_factors_later_ones_evenly():
    found = snapshot_steps(64_000, 17)
    early, even = found[1:6], [*found[6:], 64_000]
    factors = [b / a for a, b in zip(early[2:], [*early[3:], even[0]], strict=True)]
    assert max(factors) < 1.1 * min(factors)
    gaps = [b - a for a, b in zip([0, *even], even, strict=False)]
    assert max(gaps) - min(gaps) <= 1
