"""Sketches tell two sets of rows apart, against plain set arithmetic."""

from hypothesis import given, settings
from hypothesis import strategies as st

from meidbench.splits.manifests import CELLS, RowSketch, row_tag

ids = st.integers(0, 10**6).map(lambda number: f"V{number}")
rows = st.dictionaries(ids, st.integers(0, 9).map(lambda label: row_tag(str(label))), max_size=40)


@settings(deadline=None, max_examples=60)
@given(rows, rows, rows)
def test_differences_are_those_of_the_sets(common, here, there):
    a = set((common | here).items())
    b = set((common | there).items())
    only_a, only_b, complete = RowSketch(a).difference(RowSketch(b))
    rest = (a ^ b) - {*only_a, *only_b}
    assert complete == (not rest)
    # A row is missed only if each of its three cells holds another missed row, as for two rows with the same cells.
    assert 1 not in RowSketch(rest).counts
    assert (only_a, only_b) == (sorted(a - b - rest), sorted(b - a - rest))


def test_what_is_published_can_be_read_back():
    sketch = RowSketch([("A", row_tag("1")), ("B", row_tag("2"))])
    again = RowSketch.from_cells(sketch.cells())
    assert again.counts == sketch.counts and again.sums == sketch.sums


def test_too_many_differences_are_admitted():
    many = RowSketch((f"V{number}", row_tag("x")) for number in range(20 * CELLS))
    _, _, complete = many.difference(RowSketch())
    assert not complete


def test_many_differences_can_still_be_named():
    # The peeling threshold of three hash functions is 0.81 rows a cell (Goodrich and Mitzenmacher, 2011).
    wanted = sorted((f"V{number}", row_tag(str(number))) for number in range(int(0.6 * CELLS)))
    found, none, complete = RowSketch(wanted).difference(RowSketch())
    assert complete and found == wanted and none == []
