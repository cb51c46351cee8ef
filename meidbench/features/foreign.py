"""Features in forms that are not read: what they are, and the command or the lines of Python that make a form of them.

Nothing of such a file is loaded.
"""

import os
import shlex
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from meidbench.errors import describe_content
from meidbench.features.source import EXPECTED, Naming
from meidbench.names import VIDEO_SUFFIXES

_MOST_FILES = 10_000
_IMAGES = (".jpg", ".jpeg", ".png")
# For each kind of file, by the words of ``describe_content``: the modules that load it, how, and its rows as an array.
_LOADED = {
    "a pickle": ("pathlib pickle", "pickle.loads(pathlib.Path({path}).read_bytes())", 'np.asarray({rows}, "float32")'),
    "a file of torch.save": ("torch", 'torch.load({path}, map_location="cpu")', "{rows}.detach().float().numpy()"),
    "a NumPy array of Python objects": ("", "np.load({path}, allow_pickle=True).item()", "np.stack(list({rows}))"),
    "a NumPy archive": ("", "np.load({path})", "{rows}"),
}
_PICKLES = ("a pickle", "a NumPy array of Python objects")
_LINES = "two lines of Python make a folder of it:"
_TRUST = f"which is never loaded: that can run a program. If you trust it, {_LINES}"
# For files without features, by a word of ``describe_content``.
_REMEDIES = {
    "damaged": "Get the file again.",
    "archive": "Unpack it, and name the folder.",
    "prediction file": "Predictions have no features; they are scored by 'meidbench evaluate'.",
    "split file": "Name it with split=..., and name the features in its place.",
}


def is_pickle(start: bytes) -> bool:
    """Return whether the first bytes of a file are those of a pickle of protocol 2 or later."""
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def describe_file(path: Path) -> str:
    """Return what a file is that is no HDF5 file, and what to do with it, as the end of a message."""
    kind, loaded = describe_content(path), repr(str(path))
    if kind == "a video file" or (not kind and path.suffix.lower() in VIDEO_SUFFIXES):
        return f"a video file; {_extract(path.absolute().parent)} makes the features of all videos in its folder"
    if kind == "a NumPy array":
        return f"a NumPy array without ids; {_LINES}\n{_lines('', f'zip(video_ids, np.load({loaded}))', 'rows')}"
    if kind in _LOADED:
        module, load, array = _LOADED[kind]
        load = load.format(path=loaded)
        entries = f"{load}.items()"
        if kind == "a NumPy archive" and (keys := _find_joint_arrays(path)):
            entries = f"zip({load}[{keys[0]!r}], {load}[{keys[1]!r}])"
        return f"{_with_lines(kind)}\n{_lines(module, entries, array.format(rows='rows'))}"
    remedy = next((text for word, text in _REMEDIES.items() if word in kind), "")
    return f"{kind or 'not an HDF5 file'}; expected {EXPECTED}\n{remedy}".rstrip()


def describe_folder(folder: Path, naming: Naming) -> str:
    """Return what a folder without features holds, and what to do, as the end of a message."""
    endings: dict[str, list[Path]] = {}
    for path in islice(_walk(folder), _MOST_FILES):
        endings.setdefault(path.suffix.lower(), []).append(path)
    if arrays := endings.get(".npy", []) + endings.get(".npz", []):
        return f"it holds {arrays[0].name}, but no name has the form {naming.stored('VIDEO_ID')}{arrays[0].suffix}"
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
        module, load, array = _LOADED[kind]
        lines = _lines_per_file(folder, ending, module, array.format(rows=load.format(path="path")))
        return f"{paths[0].name} is {_with_lines(kind)}\n{lines}"
    return f"expected {EXPECTED}\nIt holds files such as {paths[0].name}."


def _with_lines(kind: str) -> str:
    return f"{kind}, {_TRUST}" if kind in _PICKLES else f"{kind}; {_LINES}"


def describe_objects(folder: Path) -> str:
    """Return the lines of Python that make arrays of numbers of ``.npy`` files with pickled objects."""
    array = 'np.stack(list(np.load(path, allow_pickle=True))).astype("float32")'
    return f"A pickle is data {_TRUST}\n{_lines_per_file(folder, '.npy', '', array)}"


def _extract(folder: Path) -> str:
    return f"'meidbench extract-features {shlex.quote(str(folder))} --out features.h5'"


def _lines(module: str, entries: str, array: str) -> str:
    return f'{_imports(module)}\n  for name, rows in {entries}: np.save(f"npy/{{name}}.npy", {array})'


def _lines_per_file(folder: Path, ending: str, module: str, array: str) -> str:
    files = f'pathlib.Path({str(folder)!r}).rglob("*{ending}")'
    return f'{_imports("pathlib", module)}\n  for path in {files}: np.save(f"npy/{{path.stem}}.npy", {array})'


def _imports(*modules: str) -> str:
    names = dict.fromkeys(" ".join(("os", *modules)).split())
    return f'  import {", ".join(names)}, numpy as np; os.makedirs("npy")'


def _find_joint_arrays(path: Path) -> tuple[str, str] | None:
    """Return the names of the ids and of the features of all videos in an archive; None without ids."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    ids = [name for name in ("video_ids", "ids") if name in names]
    others = sorted(set(names) - set(ids), key=lambda name: (name != "features", name))
    return (ids[0], others[0]) if ids and others else None


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(names) if not name.startswith("."))
