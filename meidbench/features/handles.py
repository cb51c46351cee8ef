"""HDF5 files that may be handed to other processes."""

import os
from pathlib import Path
from typing import Any

import h5py

from meidbench.errors import FeatureError


class Handle:
    """An HDF5 file that each process opens for itself when it first reads; it pickles closed.

    Processes must not share HDF5's own handles.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._owner = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def close(self) -> None:
        """Close the file; it is opened again when next needed."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def opened(self) -> h5py.File:
        """Return the open file.

        Raises
        ------
        FeatureError
            It cannot be opened.
        """
        if self._owner != os.getpid():
            # Close what a fork handed down, or HDF5 would open the file again on the parent's descriptor.
            self.close()
        if self._file is None:
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise FeatureError(f"cannot open {self.path}: {error}; copy or extract it again") from None
            self._owner = os.getpid()
        return self._file
