"""Frame features by video id, in every stored form. Pickled objects are never loaded; no id leads out of a folder."""

import os
from pathlib import Path

import h5py

from meidbench.errors import FeatureError, describe_content
from meidbench.features.feature_file import PackedFile, is_feature_file
from meidbench.features.source import HDF5_GROUP, PROBLEMS, FeatureSource, GroupedFile, Handle, NpyFolder
from meidbench.files import open_inside, rehearse

__all__ = ["PROBLEMS", "FeatureSource", "GroupedFile", "NpyFolder", "PackedFile", "open_features"]

# The datasets of a packed file that tell where the rows of each video are.
_INDEX = ("video_ids", "row_starts", "row_counts", "status")

_SAVE = 'and write the rows (T x D) of each video: np.save(f"features/{video_id}.npy", rows)'
# The remedy for kinds of files that are not read, by a word in ``describe_content``.
_REMEDIES = {
    "pickle": f"\nIt is never loaded. If you trust it, load it in Python, {_SAVE}",
    "torch.save": f"\nIt is not loaded. torch.load it in Python, {_SAVE}",
    "NumPy": f"\nLoad it in Python, {_SAVE}",
    "damaged": "\nGet the file again.",
    "archive": "\nUnpack it first.",
    "prediction file": "\nPredictions have no features; they are scored by meidbench evaluate.",
    "split file": "\nName the features in its place, and this file as the split.",
    "video file": "\nFeatures of videos are made by meidbench extract-features VIDEOS --out FILE.h5.",
}


def open_features(path: str | os.PathLike[str] | FeatureSource) -> FeatureSource:
    """Open a folder of ``VIDEO_ID.npy`` (as VideoLT's authors publish them), or an HDF5 file; a source stays as it is.

    An HDF5 file is one that ``meidbench`` wrote, or one with ``/features/VIDEO_ID``. Another process reads the index of
    other programs' files first. The structure is checked, and all numbers must lie in the file itself; ``verify`` in
    ``meidbench.features.verification`` and ``check_rows`` in ``meidbench.features.row_checks`` also read the rows.

    Raises
    ------
    FeatureError
        Nothing exists there, it is another kind of file or no regular file, its structure contradicts itself, it is of
        another format version, or the HDF5 library hangs or crashes on it.

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
    if isinstance(path, FeatureSource):
        return path
    path = Path(path)
    if path.is_dir():
        return NpyFolder(path)
    expected = f"expected a folder of VIDEO_ID.npy, or an HDF5 file with /{HDF5_GROUP}/VIDEO_ID"
    if not path.exists():
        raise FeatureError(f"there are no features at {path}; {expected}")
    if not path.is_file():
        raise FeatureError(f"{path} is no regular file; {expected}")
    if not h5py.is_hdf5(path):
        kind = describe_content(path)
        remedy = next((text for word, text in _REMEDIES.items() if word in kind), "")
        raise FeatureError(f"{path} is {kind or 'not an HDF5 file'}; {expected}{remedy}")
    if not is_feature_file(path) and (problem := rehearse(path, _INDEX)):
        raise FeatureError(f"cannot open {path}: {problem}; copy or extract it again")
    handle = Handle(path.absolute())
    try:
        with handle.reading() as file:
            packed = isinstance(open_inside(file, HDF5_GROUP), h5py.Dataset)
    finally:
        handle.close()
    return PackedFile(path) if packed else GroupedFile(path)
