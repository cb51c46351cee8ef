"""Why a row failed, in words that say the same on every machine."""

import re
import textwrap
from pathlib import Path

import torch

from meidbench.baselines.reproduction.materials import Materials

OUT_OF_MEMORY = (
    "out of memory; schedule.accumulate=N trains each step in N smaller parts, and schedule.batch_size=N in smaller "
    "batches"
)

# torch 2.4 knows the first name alone; later ones raise the second, of other devices as well.
_KINDS = (torch.cuda.OutOfMemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError), MemoryError)

# The allocator of the CPU raises a plain RuntimeError, and so do sizes that no memory could hold.
_SAID = re.compile(r"DefaultCPUAllocator|can't allocate memory|not enough memory|Storage size calculation overflowed")

_ABSOLUTE = re.compile(r"(?<![\w:/.])/(?:[^\s/:'\",;()]+/)*([^\s/:'\",;()]+)/?")
_LONGEST = 300


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory was not enough.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return isinstance(error, _KINDS) or (isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None)


def reason(message: str, out: Path, materials: Materials) -> str:
    """Return what a message says, on one line and without the paths of a machine.

    Parameters
    ----------
    message : str
        Of an error; the lines after the first are kept where the first announces them.
    out : Path
        Folder of the runs; what lies in it is named from there.
    materials : Materials
        Their files are named by what they hold.

    Examples
    --------
    >>> from meidbench.baselines.reproduction.built_splits import BuiltSplits
    >>> reason("/tmp/a/runs/x is damaged; see /var/log/y", Path("/tmp/a"), Materials(BuiltSplits()))
    'runs/x is damaged; see y'
    """
    first, *others = message.splitlines() or [""]
    if first.endswith(":"):
        first = f"{first} {'; '.join(line.strip().removeprefix('- ') for line in others)}"
    named = [(path, f"the split of {dataset}") for dataset, path in materials.splits.paths.items()]
    for (dataset, encoder), path in materials.paths.items():
        named.append((path, f"the features of {encoder}{f' on {dataset}' if dataset else ''}"))
    spelled = {text: name for path, name in [*named, (out, "")] for text in _spellings(path)}
    for text in sorted(spelled, key=len, reverse=True):  # files before the folder that holds them
        ending = r"(?![\w-])" if spelled[text] else "/"
        named_as = spelled[text].replace("\\", r"\\")
        first = re.sub(rf"(?<![\w./-]){re.escape(text)}{ending}", named_as, first)
    return textwrap.shorten(_ABSOLUTE.sub(r"\1", first), _LONGEST, placeholder=" ...")


def _spellings(path: Path) -> set[str]:
    return {str(path), str(path.absolute()), str(path.resolve())} - {"."}
