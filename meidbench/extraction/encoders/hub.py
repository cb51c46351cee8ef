"""Parts that the encoders of libraries share: files of the Hugging Face hub, weights, preprocessing, texts, errors."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from meidbench.errors import FeatureError
from meidbench.extraction.encoders.encoder import FrameTransform, black_frame
from meidbench.extraction.encoders.preprocessing import Preprocessing
from meidbench.names import Report

TEXTS_PER_BATCH = 64
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
    if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != 1:
        unit = "image" if clip == 1 else f"clip of {clip} images"
        given = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise FeatureError(f"{name} does not give one row per {unit}: expected shape (1, dim), got {given}")
    return rows.shape[1]


def make_transform(function: Callable[[Any], Tensor], name: str, config: Mapping[str, Any]) -> FrameTransform:
    """Return a library's transform of Pillow images, which it made from this configuration, as one of frames."""
    described = ", ".join(f"{key} {value}" for key, value in sorted(config.items()))
    return FrameTransform(partial(_transform, function), f"{name}: {described}")


def _transform(function: Callable[[Any], Tensor], frame: npt.NDArray[np.uint8]) -> Tensor:
    from PIL import Image

    return function(Image.fromarray(frame))


def encode_texts(encode: Callable[[list[str]], Tensor], texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Compute the (n, D) embeddings of n texts, in batches.

    Examples
    --------
    >>> encode_texts(lambda batch: torch.ones(len(batch), 3), []).shape
    (0, 3)
    """
    if not texts:
        return encode_texts(encode, ["a word"])[:0]
    with torch.inference_mode():
        batches = [
            encode(list(texts[first : first + TEXTS_PER_BATCH])) for first in range(0, len(texts), TEXTS_PER_BATCH)
        ]
        return torch.cat(batches).float().numpy()


def first_line(error: object) -> str:
    r"""Return the first line of an error with content, at most 300 characters.

    Examples
    --------
    >>> first_line(ValueError(" cannot open it\n  because ..."))
    'cannot open it'
    """
    return first_lines(error, 1)


def first_lines(error: object, count: int = 4) -> str:
    """Return the first lines of an error, each at most 300 characters, indented from the second on."""
    lines = [line.strip()[:300] for line in str(error).strip().splitlines()[:count]]
    return "\n  ".join(lines) or type(error).__name__
