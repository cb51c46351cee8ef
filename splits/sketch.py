"""Sketches: small sums over a set of rows, which show the rows that differ between two sets but none of the others.

A sketch is an invertible Bloom lookup table (Eppstein et al., SIGCOMM 2011). Every row is hashed into three of 240
cells, and a cell keeps only the number and the exclusive or of its rows, so no row can be read from it. In the
difference of two sketches the common rows cancel out. A cell with a single remaining row then shows that row; without
it, other cells have a single row, and so on, until all rows that differ are known.
"""

import hashlib
import struct
from collections.abc import Iterable

CELLS = 240
_ID_BYTES = 16
_TAG_BYTES = 8
_CHECK_BYTES = 4
_PLACES = struct.Struct(f">{_CHECK_BYTES}x3I")  # in a digest, after the check: one cell in each third
_THIRD = CELLS // 3
_CELL_BYTES = _ID_BYTES + _TAG_BYTES + _CHECK_BYTES

Row = tuple[str, bytes]


def row_tag(*fields: str) -> bytes:
    """Return 8 bytes that stand for the content of a row."""
    return hashlib.sha256("\t".join(fields).encode()).digest()[:_TAG_BYTES]


class RowSketch:
    """A sketch of a set of rows (video id of at most 16 bytes, tag of 8 bytes).

    Parameters
    ----------
    rows : iterable of (str, bytes)
        ``row_tag`` makes the tags.

    Examples
    --------
    >>> published = RowSketch([("A1", row_tag("3")), ("B2", row_tag("5"))])
    >>> own = RowSketch([("A1", row_tag("3")), ("B2", row_tag("6"))])
    >>> missing, extra, complete = published.difference(own)
    >>> [video for video, _ in missing], [video for video, _ in extra], complete
    (['B2'], ['B2'], True)
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.counts = [0] * CELLS
        self.sums = [0] * CELLS
        for video_id, tag in rows:
            self._add(video_id.encode().ljust(_ID_BYTES, b"\0") + tag, 1)

    @classmethod
    def from_cells(cls, cells: Iterable[tuple[int, str]]) -> "RowSketch":
        """Rebuild a sketch from the result of ``cells``."""
        sketch = cls()
        for place, (count, total) in enumerate(cells):
            sketch.counts[place], sketch.sums[place] = count, int(total, 16)
        return sketch

    def cells(self) -> list[tuple[int, str]]:
        """Return count and sum (hexadecimal) of each cell."""
        return [(count, f"{total:0{2 * _CELL_BYTES}x}") for count, total in zip(self.counts, self.sums, strict=True)]

    def _add(self, payload: bytes, sign: int) -> None:
        digest = hashlib.sha256(payload).digest()
        item = int.from_bytes(payload + digest[:_CHECK_BYTES], "big")
        first, second, third = _PLACES.unpack_from(digest)
        for place in (first % _THIRD, _THIRD + second % _THIRD, 2 * _THIRD + third % _THIRD):
            self.counts[place] += sign
            self.sums[place] ^= item

    def _single_payload(self, place: int) -> bytes | None:
        """Return the row of a cell that holds exactly one."""
        if abs(self.counts[place]) != 1:
            return None
        content = self.sums[place].to_bytes(_CELL_BYTES, "big")
        payload, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        return payload if hashlib.sha256(payload).digest()[:_CHECK_BYTES] == check else None

    def difference(self, other: "RowSketch") -> tuple[list[Row], list[Row], bool]:
        """Compare with the sketch of another set.

        Returns
        -------
        only_here, only_there : list of (str, bytes)
            The rows that only one of the two sets has, sorted by id.
        complete : bool
            False where too many rows differ; the lists then hold only some of them. All of 140 differing rows are
            found in nine cases of ten, all of 180 in eight.
        """
        rest = RowSketch()
        rest.counts = [a - b for a, b in zip(self.counts, other.counts, strict=True)]
        rest.sums = [a ^ b for a, b in zip(self.sums, other.sums, strict=True)]
        only_here: list[Row] = []
        only_there: list[Row] = []
        found = True
        while found:
            found = False
            for place in range(CELLS):
                payload = rest._single_payload(place)
                if payload is None:
                    continue
                sign = rest.counts[place]
                video_id = payload[:_ID_BYTES].rstrip(b"\0").decode(errors="replace")
                (only_here if sign > 0 else only_there).append((video_id, payload[_ID_BYTES:]))
                rest._add(payload, -sign)
                found = True
        complete = not any(rest.counts) and not any(rest.sums)
        return sorted(only_here), sorted(only_there), complete
