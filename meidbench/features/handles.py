"""HDF5 files that may be handed to other processes."""

import os
from pathlib import Path
from threading import Lock
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
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

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
            # Close what a fork handed down, or HDF5 would open the file again on the parent's descriptor. The
            # lock may have been held by a thread that the fork did not bring along.
            self._lock = Lock()
            self.close()
            self._owner = os.getpid()
        with self._lock:
            if self._file is None:
                try:
                    self._file = h5py.File(self.path, "r")
                except OSError as error:
                    raise FeatureError(f"cannot open {self.path}: {error}; copy or extract it again") from None
            return self._file
