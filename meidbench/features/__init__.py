"""Frame features by video id, in every stored form. Pickled objects are never loaded; no id leads out of a folder."""

import os
from pathlib import Path

import h5py

from meidbench.errors import FeatureError, first_few
from meidbench.features.feature_file import ID_NAMES, INDEX, PackedFile, is_feature_file
from meidbench.features.folders import NpyFolder
from meidbench.features.foreign import describe_file
from meidbench.features.source import EXPECTED, HDF5_GROUP, PROBLEMS, FeatureSource, GroupedFile, Handle, Naming
from meidbench.files import open_inside, rehearse

__all__ = ["PROBLEMS", "FeatureSource", "GroupedFile", "NpyFolder", "PackedFile", "open_features"]


def open_features(
    path: str | os.PathLike[str] | FeatureSource, *, prefix: str = "", suffix: str = "", dataset: str | None = None
) -> FeatureSource:
    """Open stored features: a folder of ``.npy`` or ``.npz``, or an HDF5 file; a source stays as it is.

    - A folder of ``VIDEO_ID.npy`` (as VideoLT's authors publish them) or, where it has none, of ``VIDEO_ID.npz``. Where
      the folder itself holds no such file, the folders below it are looked through (``train/VIDEO_ID.npy``).
    - A feature file of ``meidbench``, or an HDF5 file with the rows of all videos in ``/features``, (n, T, D) or
      (n, D), and their ids in ``/video_ids`` or ``/ids``.
    - An HDF5 file with one dataset per video: ``/features/VIDEO_ID``, or ``/VIDEO_ID`` in a file without these names.

    The rows of a video are T x D. (D,) is one row; of more than two axes, those of size 1 are left out, and where one
    other axis is left, it is one row. ``take_notes`` of the source tells of such videos.

    Another process reads the index of HDF5 files of other programs first. The structure is checked, and all numbers
    must lie in the file itself; ``verify`` in ``meidbench.features.verification`` and ``check_rows`` in
    ``meidbench.features.row_checks`` also read the rows.

    Parameters
    ----------
    path : path or FeatureSource
    prefix, suffix : str
        What stands before and after the id in the names of files and datasets: ``_clip`` of ``VIDEO_ID_clip.npy``.
        Videos with other names are left out.
    dataset : str, optional
        For HDF5, a group (``rgb`` of ``/rgb/VIDEO_ID``), an array of all videos, or the dataset in the group of each
        video (``rgb`` of ``/VIDEO_ID/rgb`` or ``/features/VIDEO_ID/rgb``). For ``.npz``, the name of the array; by
        default the only one, or ``features``. For a folder per video, the name of its file: ``VIDEO_ID/rgb.npy``.

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
    naming = Naming(prefix, suffix, "" if dataset is None else dataset)
    if isinstance(path, FeatureSource):
        if naming not in (Naming(), path.naming):
            raise FeatureError(f"{path} is open already: give prefix, suffix and dataset with its path")
        return path
    path = Path(path)
    if path.is_dir():
        return NpyFolder(path, naming)
    if not path.exists():
        raise FeatureError(f"there are no features at {path}; expected {EXPECTED}")
    if not path.is_file():
        raise FeatureError(f"{path} is no regular file; expected {EXPECTED}")
    if not h5py.is_hdf5(path):
        raise FeatureError(f"{path} is {describe_file(path)}")
    name = naming.dataset.strip("/")
    beside = [f"{name}/", *(f"{name.rpartition('/')[0]}/{ids}" for ids in ID_NAMES)] if name else []
    index = [*INDEX, *ID_NAMES, *beside]
    if not is_feature_file(path) and (problem := rehearse(path, index)):
        raise FeatureError(f"cannot open {path}: {problem}; copy or extract it again")
    handle = Handle(path.absolute())
    try:
        with handle.reading() as file:
            form = _find_form(file, name, path)
        if form is None:
            return PackedFile(path, naming)
        return GroupedFile(path, naming, group=form[0], member=form[1])
    finally:
        handle.close()


def _find_form(file: h5py.File, name: str, path: Path) -> tuple[str, str] | None:
    """Return the group and the member of a file with one dataset per video, None where one dataset has all videos.

    Another file is refused.
    """
    found = open_inside(file, name or HDF5_GROUP)
    if isinstance(found, h5py.Dataset):
        return None
    if isinstance(found, h5py.Group):
        return name or HDF5_GROUP, ""
    held = f"(it holds {first_few(sorted(file)) or 'nothing'})"
    if name:
        for place in ("", HDF5_GROUP) if "/" not in name else ():
            group = open_inside(file, place)
            if isinstance(group, h5py.Group) and any(_holds(group, f"{each}/{name}", h5py.Dataset) for each in group):
                return place, name
        problem = f"neither /{name} nor /VIDEO_ID/{name} {held}"
    elif _holds(file, "scores", h5py.Dataset):
        problem = f"no /{HDF5_GROUP} {held}: it has predictions"
    elif any(_holds(file, ids, h5py.Dataset) for ids in ID_NAMES):
        remedy = "name the array of the features, open_features(PATH, dataset=NAME)"
        problem = f"ids but no /{HDF5_GROUP}: {remedy} {held}"
    elif not len(file):
        problem = f"no /{HDF5_GROUP} {held}"
    elif not all(_holds(file, each, h5py.Group) for each in file):
        return "", ""
    else:
        inner = sorted(open_inside(file, next(iter(file))))
        # Many groups are videos with a few datasets each; a few groups have datasets of many videos.
        choice = first_few(inner if len(inner) < len(file) else file)
        problem = f"no /{HDF5_GROUP} {held}; choose one of {choice}: open_features(PATH, dataset=NAME)"
    raise FeatureError(f"{path} has {problem}\nExpected {EXPECTED}.")


def _holds(file: h5py.File, name: str, kind: type) -> bool:
    """Return whether an object of this kind lies in the file itself."""
    try:
        return isinstance(open_inside(file, name), kind)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return False
