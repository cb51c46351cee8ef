"""Parts that the encoders of libraries share: files of the Hugging Face hub, random weights, the width of rows."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from meidbench.errors import FeatureError
from meidbench.names import Report

# Errors of the hub's library where a file cannot be had: no network, no such repository, revision or rights.
_UNAVAILABLE = (OSError, ValueError)


@dataclass(frozen=True)
class HubFile:
    """A file of a model in the hub's cache, and the commit that it is of."""

    path: Path
    commit: str


def find_hub_file(repository: str, names: Sequence[str], *, revision: str = "", offline: bool = False) -> HubFile:
    """Return the first of these files that a model on the Hugging Face hub has; it is fetched into the hub's cache.

    Parameters
    ----------
    repository : str
        ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
    names : sequence of str
        File names, the preferred one first.
    revision : str
        Branch, tag or commit; in place of the one in ``repository``.
    offline : bool
        Take files of the cache only. The library does so, too, where ``HF_HUB_OFFLINE=1`` is set.

    Raises
    ------
    FeatureError
        No file is in the cache, and none can be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, named = repository.partition("@")
    revision = revision or named
    reason = ""
    for name in names:
        try:
            path = Path(hf_hub_download(repository, name, revision=revision or None, local_files_only=offline))
        except EntryNotFoundError as error:
            # Without a network, the library tries for half a minute: the other names are looked for in the cache only.
            offline = offline or isinstance(error, LocalEntryNotFoundError)
            reason = reason or str(error)
        except _UNAVAILABLE as error:
            reason = str(error)
            break
        else:
            # CACHE/models--OWNER--NAME/snapshots/COMMIT/FILE, and a file may lie in folders.
            return HubFile(path, path.parts[-1 - len(Path(name).parts)])
    at, command = (f" at revision {revision}", f" --revision {revision}") if revision else ("", "")
    raise FeatureError(
        f"{repository}{at} is not in the cache of the Hugging Face hub (HF_HOME), and cannot be fetched\n"
        f"  missing: {' or '.join(names)}; {first_line(reason)}\n"
        f"  remedy: check the name; 'hf download {repository}{command}' with a network; or name a local folder"
    )


@contextmanager
def draw_weights(name: str, seed: int | None, report: Report) -> Iterator[None]:
    """Let a library initialise a network by this seed, and leave torch's generator as it was; for tests.

    FeatureError: there is no seed.
    """
    if seed is None:
        raise FeatureError(
            "random weights need a seed, to draw them again (--seed N; for verify-features: --weights-seed N)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
    report(f"{name} has RANDOM weights (seed {seed}): its features mean nothing and are for tests only")


def find_width(name: str, network: nn.Module, height: int, width: int) -> int:
    """Return the numbers per row of a network, from a black image; FeatureError: it does not give one row per image."""
    try:
        with torch.no_grad():
            rows = network(torch.zeros((1, 3, height, width)))
    except RuntimeError as error:
        raise FeatureError(f"{name} takes no RGB images of {width}x{height} pixels: {first_line(error)}") from None
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != 1:
        given = f"shape {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise FeatureError(f"{name} does not give one row per image: expected shape (1, dim), got {given}")
    return rows.shape[1]


def first_line(error: object) -> str:
    r"""Return the first line of an error with content, at most 300 characters.

    Examples
    --------
    >>> first_line(ValueError(" cannot open it\n  because ..."))
    'cannot open it'
    """
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
