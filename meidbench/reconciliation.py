"""Which rows of a set differ from the published ones, told from a digest that holds none of them.

A sketch is an invertible Bloom lookup table (Goodrich and Mitzenmacher, 2011; for set differences: Eppstein et al.,
SIGCOMM 2011): each row is hashed into three cells, and a cell keeps only the number of its rows and their exclusive
or. A cell of the published sketches mixes at least twenty rows and says nothing of any of them. Subtract the
sketch of the rows at hand, and what both have cancels out; the rows that only one side has can be peeled off one by
one; with many more than half as many of them as there are cells, this begins to fail, and says so.
"""

import hashlib
from collections.abc import Iterable

CELLS = 240
_ID_BYTES = 16
_TAG_BYTES = 8
_CHECK_BYTES = 4
_CELL_BYTES = _ID_BYTES + _TAG_BYTES + _CHECK_BYTES

Row = tuple[str, bytes]


def row_tag(*fields: str) -> bytes:
    """Return 8 bytes that stand for the content of a row."""
    return hashlib.sha256("\t".join(fields).encode()).digest()[:_TAG_BYTES]


class Sketch:
    """Sums over a set of rows (video id of at most 16 bytes, tag of 8 bytes).

    Parameters
    ----------
    rows : iterable of (str, bytes)
        ``row_tag`` makes the tags.

    Examples
    --------
    >>> published = Sketch([("A1", row_tag("3")), ("B2", row_tag("5"))])
    >>> at_hand = Sketch([("A1", row_tag("3")), ("B2", row_tag("6"))])
    >>> missing, extra, complete = published.difference(at_hand)
    >>> [video for video, _ in missing], [video for video, _ in extra], complete
    (['B2'], ['B2'], True)
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.counts = [0] * CELLS
        self.sums = [0] * CELLS
        for video_id, tag in rows:
            self._add(video_id.encode().ljust(_ID_BYTES, b"\0") + tag, 1)

    @classmethod
    def from_cells(cls, cells: Iterable[tuple[int, str]]) -> "Sketch":
        """Rebuild a sketch from what ``cells`` returned."""
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
        third = CELLS // 3
        for part in range(3):
            place = part * third + int.from_bytes(digest[4 + 4 * part : 8 + 4 * part], "big") % third
            self.counts[place] += sign
            self.sums[place] ^= item

    def _pure_payload(self, place: int) -> bytes | None:
        """Return the only row of a cell, if it has but one."""
        if abs(self.counts[place]) != 1:
            return None
        content = self.sums[place].to_bytes(_CELL_BYTES, "big")
        payload, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        return payload if hashlib.sha256(payload).digest()[:_CHECK_BYTES] == check else None

    def difference(self, other: "Sketch") -> tuple[list[Row], list[Row], bool]:
        """Compare with the sketch of another set.

        Returns
        -------
        only_here, only_there : list of (str, bytes)
            The rows that only one of the two sets has, sorted by id.
        complete : bool
            False where the sets differ in more rows than can be told apart; the lists are then a part.
        """
        rest = Sketch()
        rest.counts = [a - b for a, b in zip(self.counts, other.counts, strict=True)]
        rest.sums = [a ^ b for a, b in zip(self.sums, other.sums, strict=True)]
        only_here: list[Row] = []
        only_there: list[Row] = []
        peeled = True
        while peeled:
            peeled = False
            for place in range(CELLS):
                payload = rest._pure_payload(place)
                if payload is None:
                    continue
                sign = rest.counts[place]
                video_id = payload[:_ID_BYTES].rstrip(b"\0").decode(errors="replace")
                (only_here if sign > 0 else only_there).append((video_id, payload[_ID_BYTES:]))
                rest._add(payload, -sign)
                peeled = True
        complete = not any(rest.counts) and not any(rest.sums)
        return sorted(only_here), sorted(only_there), complete
