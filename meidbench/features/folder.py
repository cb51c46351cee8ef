"""A folder with one ``VIDEO_ID.npy`` a video, as VideoLT's authors give features out. Nothing is ever unpickled."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO, FileIO
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from meidbench.errors import FeatureError
from meidbench.features.source import Array, FeatureSource, Unusable, check_array

# What numpy writes before the data of an ordinary array, and more than it accepts (10,000 bytes).
_USUAL_HEADER = 128
_LONGEST_HEADER = 1 << 14


class NpyFolder(FeatureSource):
    """A folder with one ``VIDEO_ID.npy`` a video; files of other names are left alone."""

    expected = "a folder of VIDEO_ID.npy"

    def _ids(self) -> set[str]:
        try:
            with os.scandir(self.path) as entries:
                return {entry.name[:-4] for entry in entries if entry.name.endswith(".npy")}
        except OSError as error:
            raise FeatureError(f"cannot list the folder {self.path}: {error.strerror}") from None

    def _shape(self, video_id: str) -> tuple[int, int]:
        with self._opened(video_id) as (_, header):
            return header.shape

    def _load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:
        with self._opened(video_id) as (stream, header):
            order: Literal["C", "F"] = "F" if header.by_column else "C"
            stored = np.memmap(stream, header.dtype, "r", header.offset, header.shape, order)
            if rows is None:
                return np.array(stored)
            self._check_rows(video_id, rows, len(stored))
            return np.asarray(stored)[rows.astype(np.intp)]

    @contextmanager
    def _opened(self, video_id: str) -> Iterator[tuple[FileIO, "_Header"]]:
        try:
            with (self.path / f"{video_id}.npy").open("rb", buffering=0) as stream:
                yield stream, _read_header(stream)
        except FileNotFoundError:
            raise Unusable("missing") from None
        except OSError as error:
            raise Unusable("unreadable", error.strerror or str(error)) from None


class _Header(NamedTuple):
    shape: tuple[int, int]
    by_column: bool
    dtype: np.dtype[Any]
    offset: int


def _read_header(stream: FileIO) -> _Header:
    """Read the header of a ``.npy`` file and check it against the size of the file."""
    head = stream.read(_USUAL_HEADER)
    size = os.fstat(stream.fileno()).st_size
    try:
        try:
            # Most videos of a dataset have one and the same header, and to parse costs more than to read it.
            shape, by_column, dtype, offset = _parse_usual_header(head)
        except _HeaderError:
            shape, by_column, dtype, offset = _parse_header(head + stream.read(_LONGEST_HEADER))
    except _HeaderError as error:
        if size < _USUAL_HEADER and (head.startswith(npy.MAGIC_PREFIX) or npy.MAGIC_PREFIX.startswith(head)):
            raise Unusable("truncated", f"{size} bytes") from None
        raise Unusable("format", str(error)) from None
    if dtype.hasobject:
        raise Unusable("objects")
    check_array(shape, dtype)
    needed = offset + math.prod(shape) * dtype.itemsize
    if size < needed:
        raise Unusable("truncated", f"{size:,} of {needed:,} bytes")
    return _Header((shape[0], shape[1]), by_column, dtype, offset)


class _HeaderError(Exception):
    """A ``.npy`` header cannot be parsed."""


def _parse_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran order, dtype and offset of the data."""
    stream = BytesIO(head)
    try:
        version = npy.read_magic(stream)
    except ValueError:
        raise _HeaderError("it does not begin as one") from None
    # Version 3 is for structured arrays whose field names are not Latin-1, which features never are.
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise _HeaderError(f"format version {version[0]}.{version[1]}")
    try:
        with warnings.catch_warnings():
            # Shapes written by Python 2 ("150L") are read all the same; a warning a file helps nobody.
            warnings.simplefilter("ignore")
            shape, by_column, dtype = readers[version](stream)
    except Exception as error:
        # Not only ValueError: on a damaged header numpy lets through what Python's tokenizer raises.
        raise _HeaderError(f"damaged header: {str(error).partition(chr(10))[0]}") from None
    return shape, by_column, dtype, stream.tell()


_parse_usual_header = lru_cache(maxsize=256)(_parse_header)
