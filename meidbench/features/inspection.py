"""What the rows of one video show: damage, numbers that are none, rows without content; and how alike two are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meidbench.features.quantisation import all_finite, decode
from meidbench.features.records import VideoRows


@dataclass(frozen=True)
class Look:
    """What is kept of a video once its rows were read.

    Attributes
    ----------
    problem, detail : str
        Why it could not be read; empty where it could.
    shape : tuple of int
        Rows and their width.
    dtype : str
        Of the stored rows.
    checksum : int
        As ``VideoRows.checksum`` gives it.
    remarks : tuple of (str, str)
        What was noticed, as a name and a detail.
    """

    problem: str
    detail: str
    shape: tuple[int, int] = (0, 0)
    dtype: str = ""
    checksum: int = 0
    remarks: tuple[tuple[str, str], ...] = ()


def look_at(video: VideoRows, expected: int | None) -> Look:
    """Notice what is wrong or odd in the rows of one video.

    Parameters
    ----------
    video : VideoRows
        At least one row.
    expected : int or None
        Its checksum when it was written, where that is known.

    Examples
    --------
    >>> look_at(VideoRows(np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])), None).remarks
    (('zero-rows', '1 of 3'),)
    """
    rows = np.ascontiguousarray(video.rows, video.rows.dtype.newbyteorder("="))
    actual = video.checksum()
    remarks = []
    if video.status == "salvaged":
        remarks.append(("salvaged", video.reason))
    if expected is not None and actual != expected:
        remarks.append(("checksum", ""))
    if video.scales is not None:
        is_finite = bool(np.isfinite(video.scales).all())
    else:
        is_finite = rows.dtype.kind != "f" or all_finite(rows)
    if not is_finite:
        numbers = decode(rows, video.scales)
        remarks.append(("not-finite", _share(~np.isfinite(numbers).all(axis=1))))
    # Bit for bit, which is many times as fast on half precision.
    bits = rows.view(f"u{rows.dtype.itemsize}")
    shape = (len(rows), rows.shape[1])
    if shape[1] > 1:
        constant = bits[:, 0] == bits[:, -1]
        constant[constant] = (bits[constant] == bits[constant, :1]).all(axis=1)
    else:
        constant = np.ones(len(rows), bool)
    zero = constant & (rows[:, 0] == 0)
    if video.scales is not None:
        zero |= video.scales == 0
    if zero.any():
        remarks.append(("zero-rows", _share(zero)))
    if shape[1] > 1 and (constant := constant & ~zero).any():
        remarks.append(("constant-rows", _share(constant)))
    scales_same = video.scales is None or bool((video.scales == video.scales[0]).all())
    if len(rows) > 1 and np.array_equal(bits[0], bits[-1]) and scales_same and bool((bits == bits[0]).all()):
        remarks.append(("frozen", f"{len(rows):,} rows"))
    return Look("", "", shape, str(rows.dtype), actual, tuple(remarks))


def cosine_similarity(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the cosine of each row of one (r, D) array with the same row of another, (r,) float64.

    Two rows of zeros have 1, one of zeros and one of others 0.

    Examples
    --------
    >>> cosine_similarity(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])).round(4)
    array([0.7071, 1.    ])
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    products = (one * other).sum(axis=1)
    lengths = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, products / np.where(lengths == 0, 1.0, lengths))
    return cosines


def _share(concerned: npt.NDArray[np.bool_]) -> str:
    return f"{concerned.sum():,} of {len(concerned):,}"
