"""The subset of a video that import-split reads: its own, that given for its file, or that in the name of the file."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meidbench.annotations.base import quote
from meidbench.names import SUBSET_NAMES, SUBSETS


@dataclass(frozen=True)
class FileSubset:
    """The subset of the videos of a file that have none of their own, empty where each needs one."""

    name: str
    is_given: bool  # by the user; else it is from the file's name

    def resolve(self, own: str) -> str:
        """Return the subset of a video; ``own`` is that in its row. ``ValueError`` for one that it cannot be."""
        if not own and self.name:
            return self.name
        if (known := SUBSET_NAMES.get(own.lower())) is None:
            raise ValueError(f"subset {quote(own)} is not one of {', '.join(SUBSETS)}")
        if self.is_given and known != self.name:
            raise ValueError(f"its subset is {known}, but the file was given as {self.name}")
        return own


class FileSubsets:
    """The subset of each file's videos: as given, or that in its name; ``notes`` tell which are from names."""

    def __init__(self, given: Sequence[str]) -> None:
        self._given = given
        self._from_names: list[str] = []

    def choose(self, place: int, path: Path, have_own: bool) -> FileSubset:
        """Return the subset of a file's videos, which may have their own."""
        given = self._given[place]
        if given or have_own:
            return FileSubset(given, bool(given))
        # Words of any case: CharadesLT_train, kinetics-val, myTestList, trainlist01.
        words = (word.lower().removesuffix("list") for word in re.findall(r"[A-Z]*[a-z]+|[A-Z]+", path.stem))
        named = {SUBSET_NAMES[word] for word in words if word in SUBSET_NAMES}
        if len(named) != 1:
            return FileSubset("", False)
        self._from_names.append(f"{path.name} is {min(named)}")
        return FileSubset(min(named), False)

    @property
    def notes(self) -> list[str]:
        """A note for a person, where names told subsets."""
        return [f"subsets by the names of the files: {', '.join(self._from_names)}"] if self._from_names else []
