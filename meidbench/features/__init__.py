"""Frame features by video id, however they are stored; how they are made lies beside in modules of their own.

Nothing is ever unpickled, and no id leads out of the folder.
"""

import os
from pathlib import Path

import h5py

from meidbench.errors import FeatureError
from meidbench.features.feature_file import PackedFile
from meidbench.features.source import HDF5_GROUP, PROBLEMS, FeatureSource, Handle, Hdf5File, NpyFolder

__all__ = ["PROBLEMS", "FeatureSource", "Hdf5File", "NpyFolder", "PackedFile", "open_features"]


def open_features(path: str | os.PathLike[str]) -> FeatureSource:
    """Open the features of a dataset.

    Parameters
    ----------
    path : path
        A folder of ``VIDEO_ID.npy`` (as VideoLT's authors give them out), or or an HDF5 file: one that
        ``meidbench`` wrote, or with ``/features/VIDEO_ID``.

    Raises
    ------
    FeatureError
        There is nothing there, or it is neither.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "ATOYW.npy"), np.arange(8, dtype=np.float16).reshape(4, 2))
    ...     source = open_features(folder)
    ...     source.read("ATOYW", [0, 3, 3]), source.num_frames("ATOYW"), source.dim
    (array([[0., 1.], [6., 7.], [6., 7.]], dtype=float16), 4, 2)
    """
    path = Path(path)
    if path.is_dir():
        return NpyFolder(path)
    expected = f"expected a folder of VIDEO_ID.npy, or an HDF5 file with /{HDF5_GROUP}/VIDEO_ID"
    if not path.exists():
        raise FeatureError(f"there are no features at {path}; {expected}")
    if not h5py.is_hdf5(path):
        raise FeatureError(f"{path} is not an HDF5 file; {expected}\nUnpack it first if it is an archive.")
    handle = Handle(path.absolute())
    try:
        packed = isinstance(handle.opened().get(HDF5_GROUP), h5py.Dataset)
    finally:
        handle.close()
    return PackedFile(path) if packed else Hdf5File(path)
