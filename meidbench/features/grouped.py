"""An HDF5 file with one dataset a video, ``/features/VIDEO_ID``, as others write it."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from meidbench.errors import FeatureError, first_few
from meidbench.features.handles import Handle
from meidbench.features.source import Array, FeatureSource, Unusable, check_array

HDF5_GROUP = "features"


class Hdf5File(FeatureSource):
    """An HDF5 file with one dataset ``/features/VIDEO_ID`` a video."""

    expected = f"an HDF5 file with /{HDF5_GROUP}/VIDEO_ID"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._handle = Handle(self.path)
        try:
            # To refuse at once what cannot be used.
            self._group()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; it is opened again when next needed."""
        self._handle.close()

    def _group(self) -> Any:
        file = self._handle.opened()
        group = file.get(HDF5_GROUP)
        if not isinstance(group, h5py.Group):
            found = first_few(sorted(file)) or "nothing"
            raise FeatureError(f"{self.path} has no group /{HDF5_GROUP} (it holds {found}); expected {self.expected}")
        return group

    def _ids(self) -> set[str]:
        return set(self._group())

    def _shape(self, video_id: str) -> tuple[int, int]:
        rows, width = self._dataset(video_id).shape
        return rows, width

    def _load(self, video_id: str, rows: npt.NDArray[Any] | None) -> Array:
        dataset = self._dataset(video_id)
        if rows is not None:
            self._check_rows(video_id, rows, len(dataset))
        try:
            # h5py's own row selection refuses repeated rows, and is slower than to read the whole.
            whole: Array = dataset[()]
        except OSError as error:
            raise Unusable("unreadable", str(error)) from None
        return whole if rows is None else whole[rows.astype(np.intp)]

    def _dataset(self, video_id: str) -> Any:
        group = self._group()
        try:
            dataset = group[video_id]
        except KeyError:
            # A link to another file that is not there looks the same as no link.
            raise Unusable("missing") from None
        except OSError as error:
            raise Unusable("unreadable", str(error)) from None
        if not isinstance(dataset, h5py.Dataset):
            raise Unusable("ndim", "a group, not a dataset")
        try:
            shape, dtype = dataset.shape, dataset.dtype
        except TypeError as error:  # a type of HDF5 that numpy does not have
            raise Unusable("dtype", str(error)) from None
        check_array(shape, dtype)
        return dataset
