"""Features in forms that are not read: what they are, and the command or the line of Python that makes a form of them.

Nothing of such a file is loaded.
"""

import os
import shlex
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from meidbench.errors import describe_content
from meidbench.features.feature_file import ID_NAMES
from meidbench.features.source import EXPECTED, Naming
from meidbench.names import VIDEO_SUFFIXES

_MOST_FILES = 10_000
_IMAGES = (".jpg", ".jpeg", ".png")
# For each kind of file, by the words of ``describe_content``: how Python loads it, and its rows as an array.
_LOADED = {
    "a pickle": ("np.load({path}, allow_pickle=True)", 'np.asarray({rows}, "float32")'),
    "a file of torch.save": ('torch.load({path}, map_location="cpu")', "{rows}.detach().float().numpy()"),
    "a NumPy array of Python objects": ("np.load({path}, allow_pickle=True).item()", "np.stack(list({rows}))"),
    "a NumPy archive": ("np.load({path})", "{rows}"),
}
_PICKLES = ("a pickle", "a NumPy array of Python objects")
_LINE = "one line of Python makes a folder of it:"
_TRUST = f"which is never loaded: that can run a program. If you trust it, {_LINE}"
# For files without features, by a word of ``describe_content``.
_REMEDIES = {
    "checkpoint": "Name the features that the run read: config.json beside it has their path.",
    "damaged": "Get the file again.",
    "archive": "Unpack it, and name the folder.",
    "prediction file": "Predictions have no features; they are scored by 'meidbench evaluate'.",
    "split file": "Name it with split=..., and name the features in its place.",
}


def describe_file(path: Path) -> str:
    """Return what a file is that is no HDF5 file, and what to do with it, as the end of a message."""
    kind, loaded = describe_content(path), repr(str(path))
    if kind == "a video file" or (not kind and path.suffix.lower() in VIDEO_SUFFIXES):
        return f"a video file; {_extract(path.absolute().parent)} makes the features of all videos in its folder"
    if kind == "a NumPy array":
        save = _save("name", "rows", f"name, rows in zip(video_ids, np.load({loaded}))")
        return f"a NumPy array without ids; {_LINE}\n{save}"
    if kind in _LOADED:
        load, array = (text.format(path=loaded, rows="rows") for text in _LOADED[kind])
        entries = f"{load}.items()"
        if kind == "a NumPy archive" and (keys := _find_joint_arrays(path)):
            entries = f"zip({load}[{keys[0]!r}], {load}[{keys[1]!r}])"
        return f"{_introduce(kind)}\n{_save('name', array, f'name, rows in {entries}')}"
    remedy = next((text for word, text in _REMEDIES.items() if word in kind), "")
    return f"{kind or 'not an HDF5 file'}; expected {EXPECTED}\n{remedy}".rstrip()


def describe_folder(folder: Path, naming: Naming) -> str:
    """Return what a folder without features holds, and what to do, as the end of a message."""
    endings: dict[str, list[Path]] = {}
    for path in islice(_walk(folder), _MOST_FILES):
        endings.setdefault(path.suffix.lower(), []).append(path)
    if arrays := endings.get(".npy", []) + endings.get(".npz", []):
        member = f"/{naming.dataset}" if naming.dataset and arrays[0].suffix == ".npy" else ""
        form = f"{naming.stored('VIDEO_ID')}{member}{arrays[0].suffix}"
        return f"it holds {arrays[0].name}, but no name has the form {form}"
    for suffixes, what in ((VIDEO_SUFFIXES, "videos"), (_IMAGES, "frames of videos")):
        if there := [path for ending in suffixes for path in endings.get(ending, [])]:
            return f"it holds {what} ({there[0].name})\n{_extract(folder)} makes their features."
    for ending in (".h5", ".hdf5", ".hdf"):
        if ending in endings:
            return f"it holds {endings[ending][0].name}; name that file, not its folder"
    if not endings:
        return f"expected {EXPECTED}"
    ending, paths = max(endings.items(), key=lambda entry: len(entry[1]))
    kind = describe_content(paths[0]) if paths[0].is_file() else ""
    if kind in _LOADED:
        load, array = _LOADED[kind]
        save = _save_per_file(folder, ending, array.format(rows=load.format(path="path")))
        return f"{paths[0].name} is {_introduce(kind)}\n{save}"
    return f"expected {EXPECTED}\nIt holds files such as {paths[0].name}."


def _introduce(kind: str) -> str:
    return f"{kind}, {_TRUST}" if kind in _PICKLES else f"{kind}; {_LINE}"


def describe_objects(folder: Path) -> str:
    """Return the line of Python that makes arrays of numbers of ``.npy`` files with pickled objects."""
    array = 'np.stack(list(np.load(path, allow_pickle=True))).astype("float32")'
    return f"A pickle is data {_TRUST}\n{_save_per_file(folder, '.npy', array)}"


def _extract(folder: Path) -> str:
    return f"'meidbench extract-features {shlex.quote(str(folder))} --out features.h5'"


def _save(name: str, array: str, entries: str) -> str:
    """Return one line of Python that saves an array per entry."""
    code = f'os.makedirs("npy"); _ = [np.save(f"npy/{{{name}}}.npy", {array}) for {entries}]'
    modules = [module for module in ("os", "pathlib", "torch") if f"{module}." in code]
    return f"  import {', '.join(modules)}, numpy as np; {code}"


def _save_per_file(folder: Path, ending: str, array: str) -> str:
    return _save("path.stem", array, f'path in pathlib.Path({str(folder)!r}).rglob("*{ending}")')


def _find_joint_arrays(path: Path) -> tuple[str, str] | None:
    """Return the names of the ids and of the features of all videos in an archive; None without ids."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    ids = [name for name in ID_NAMES if name in names]
    others = sorted(set(names) - set(ids), key=lambda name: (name != "features", name))
    return (ids[0], others[0]) if ids and others else None


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))
