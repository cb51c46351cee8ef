"""Parts that the encoders of libraries share: files of the Hugging Face hub, random weights, the width of rows."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from meidbench.errors import FeatureError
from meidbench.extraction.encoders.encoder import FrameTransform, black_frame
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.names import Report

_CONFIGS = ("config.json", "open_clip_config.json")


@dataclass(frozen=True)
class HubFile:
    """A file of a model in the hub's cache, and the commit that it is of."""

    path: Path
    commit: str


def find_hub_file(
    prefix: str, repository: str, names: Sequence[str], *, revision: str = "", offline: bool = False
) -> HubFile:
    """Return the first of these files that a model on the Hugging Face hub has; it is fetched into the hub's cache.

    Parameters
    ----------
    prefix, revision, offline
        As for :func:`fetch_folder`.
    repository : str
        ``OWNER/NAME``, or ``OWNER/NAME@REVISION``.
    names : sequence of str
        File names, the preferred one first.

    Raises
    ------
    FeatureError
        No file is in the cache, and none can be fetched.
    """
    repository, _, named = repository.partition("@")
    revision = revision or named
    for name in names:
        folder = fetch_folder(prefix, repository, [name], revision=revision, offline=offline)
        revision = folder.name
        if (folder / name).is_file():
            return HubFile(folder / name, revision)
    raise FeatureError(
        f"{prefix}{repository}@{revision} has no {' or '.join(names)}\n"
        f"  remedy: where only the cache lacks it, run 'hf download {repository} --revision {revision}'; "
        f"{_offer_folder(prefix)}"
    )


def fetch_folder(
    prefix: str, repository: str, patterns: Sequence[str], *, revision: str = "", offline: bool = False
) -> Path:
    """Fetch files of a model into the Hugging Face hub's cache, and return their folder, whose name is the commit.

    Parameters
    ----------
    prefix : str
        What stands before the repository in an encoder's name, for messages: ``hf:``, ``timm:hf-hub:``.
    repository : str
        ``OWNER/NAME``.
    patterns : sequence of str
        Of the files' names. Files that the repository does not have are left out.
    revision : str
        Branch, tag or commit.
    offline : bool
        Take files of the cache only. The library does so, too, where ``HF_HUB_OFFLINE=1`` is set.

    Raises
    ------
    FeatureError
        They are not in the cache and cannot be fetched; the message says why, and what to do.
    """
    from huggingface_hub import errors, snapshot_download

    command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    options = {"revision": revision or None, "local_files_only": offline, "ignore_patterns": ["*/*"]}
    try:
        with _bars_on_terminals():
            # A configuration is there in any case: without any file that fits, the library warns.
            return Path(snapshot_download(repository, allow_patterns=[*_CONFIGS, *patterns], **options))
    except errors.GatedRepoError:
        problem = "is gated: only users who accepted its conditions can fetch it"
        remedy = f"accept them on the page of {repository}, log in (hf auth login), and run the same again"
    except errors.RepositoryNotFoundError:
        problem = "is not on the hub, or it is private"
        remedy = f"check the name; for a private model, log in (hf auth login); {_offer_folder(prefix)}"
    except errors.RevisionNotFoundError:
        problem, remedy = "is not on the hub: the model has no such revision", "name a branch, a tag or a commit of it"
    except errors.HFValidationError:
        problem, remedy = "is neither a folder nor a name on the hub", "name it as in openai/clip-vit-base-patch16"
    except errors.LocalEntryNotFoundError:
        problem = "is not complete in the hub's cache, and the hub cannot be reached (no network, or offline)"
        remedy = f"check the name; run '{command}' where there is a network; {_offer_folder(prefix)}"
    except Exception as error:  # networks, servers and file systems raise errors of their own
        problem = f"cannot be fetched: {type(error).__name__}: {first_line(error)}"
        remedy = f"run the same again, or '{command}'; {_offer_folder(prefix)}"
    raise FeatureError(f"{prefix}{repository}{revision and f'@{revision}'} {problem}\n  remedy: {remedy}")


def _offer_folder(prefix: str) -> str:
    return f"or name a folder with the model: {prefix.partition(':')[0]}:FOLDER"


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Let the hub's progress bars appear on terminals alone, where they overwrite themselves."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not (sys.stderr.isatty() or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


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
        torch.default_generator.manual_seed(seed)  # GPUs' generators, which no initialisation uses here, stay
        yield
    report(f"{name} has RANDOM weights (seed {seed}): its features mean nothing and are for tests only")


def find_width(name: str, network: nn.Module, preprocessing: Preprocessing | FrameTransform, clip: int = 1) -> int:
    """Return the numbers per row of a network, from black images; FeatureError: it does not give one row per clip."""
    images = black_frame(preprocessing).expand(clip, -1, -1, -1)
    try:
        with torch.no_grad():
            rows = network(images)
    except RuntimeError as error:
        height, width = images.shape[2:]
        raise FeatureError(f"{name} takes no RGB images of {width}x{height} pixels: {first_line(error)}") from None
    if not isinstance(rows, torch.Tensor) or rows.ndim != 2 or len(rows) != 1:
        unit = "image" if clip == 1 else f"clip of {clip} images"
        given = f"shape {tuple(rows.shape)}" if isinstance(rows, torch.Tensor) else type(rows).__name__
        raise FeatureError(f"{name} does not give one row per {unit}: expected shape (1, dim), got {given}")
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
