"""Word features, a proxy task of real labels that needs no video: the "frames" of a video are the words of its text.

Each word of a video's official description is one row, and a word has the same row in every video and benchmark.

They are good for:

- comparing methods on a real long-tailed multi-label problem. Videos, labels, subsets and co-occurrence are the
  benchmark's own, and nobody chose how well a class shows;
- methods that choose or weight frames: some words tell of a label, most do not.

They are *not* good for:

- claims about video. No pixel is seen; equal words have exactly equal rows, the order of words is that of grammar, and
  the difference of two neighbouring rows is no motion;
- absolute numbers. The annotators wrote the texts with the actions in view, so words are near to the labels;
- CharadesEgoLT without care: where a video has no description, the script is taken that the actor was given. Both
  takes of a script (first and third person) then have the same rows, and the benchmark puts takes in several subsets.

The formula. The text is in lower case, and a word is a run of letters and digits, with apostrophes inside it. The
number ``j`` of a word is the sum of the bytes ``12 j`` to ``12 j + 11`` of SHAKE-256 of the word in UTF-8, less 1530
(the mean of that sum), divided by 256. This is nearly a standard normal distribution, with variance 65535/65536. All
numbers are exact in float16, so they are the same on every machine and with every version of NumPy, and a narrower
row is the beginning of a wider one.
"""

import hashlib
import os
import re
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from meidbench.annotations import read_texts
from meidbench.checks import whole_number
from meidbench.errors import FeatureError, first_few, write_count
from meidbench.features.feature_file import Layout, Recipe
from meidbench.features.records import VideoRows
from meidbench.features.source import is_usable_id
from meidbench.features.store import feature_writer, stored_headers
from meidbench.names import ProgressBar, Report
from meidbench.splits.manifests import Manifest, load_manifest

BACKBONE, DIM = "words", 256
FORMULA = 1  # increased whenever the same text would give other features
_MOST_NUMBERS = 1 << 16
_BYTES = 12  # that are summed to one number
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def split_words(text: str) -> list[str]:
    """Return the words of a text, in lower case and in its order.

    >>> split_words("A man doesn't open 2 doors; he's re-reading.")
    ['a', 'man', "doesn't", 'open', '2', 'doors', "he's", 're', 'reading']
    """
    return _WORD.findall(text.lower())


@lru_cache(maxsize=1 << 14)
def word_vector(word: str, dim: int = DIM) -> npt.NDArray[np.float16]:
    """Return the fixed random row of a word, (dim,) float16, which depends on the word alone (see the module).

    >>> word_vector("door", 4).tolist()
    [0.89453125, 0.39453125, -0.05078125, 1.87890625]
    """
    stream = np.frombuffer(hashlib.shake_256(word.encode()).digest(_BYTES * dim), np.uint8)
    sums = stream.reshape(dim, _BYTES).sum(axis=1, dtype=np.int64)
    vector: npt.NDArray[np.float16] = ((sums - _BYTES * 255 // 2) / 256).astype(np.float16)
    vector.setflags(write=False)
    return vector


def make_word_features(
    dataset: str | Manifest,
    annotations: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dim: int = DIM,
    progress: ProgressBar | None = None,
    report: Report | None = None,
) -> Path:
    """Write the word features of all videos of a benchmark's annotation files, those outside its split included.

    They say nothing about vision (see the module). The words are those of the column ``descriptions``; of ``script``
    where it has none. The columns ``actions`` and ``objects`` are not read. A video has one row per word.

    Parameters
    ----------
    dataset : str or Manifest
        ``charadeslt`` or ``charadesegolt``, the path of a manifest, or a manifest.
    annotations : path
        The folder of the official files.
    out : path
        The feature file, float16, which is returned. An interrupted run is continued; a file made from other texts or
        with other arguments is refused.
    dim : int
        Numbers per row.

    Raises
    ------
    AnnotationError
        The benchmark has no descriptions, or its files are missing or damaged.
    FeatureError
        ``dim`` makes no sense, a video has no word, or the file cannot be written.
    """
    dim = whole_number("dim", dim, 1, FeatureError)
    if dim > _MOST_NUMBERS:
        raise FeatureError(f"dim must be at most {_MOST_NUMBERS:,}, got {dim:,}")
    manifest = dataset if isinstance(dataset, Manifest) else load_manifest(dataset)
    words = _read_words(manifest, Path(annotations))
    video_ids = sorted(words)
    told = hashlib.sha256()
    for video_id in video_ids:
        told.update(f"{video_id}\t{' '.join(words[video_id])}\n".encode())
    recipe: Recipe = {"backbone": BACKBONE, "formula": FORMULA, "dataset": manifest.name, "texts": told.hexdigest()}
    counts = np.array([len(words[video_id]) for video_id in video_ids], np.int64)
    sizes = np.zeros(len(video_ids), np.int64)
    layout = Layout(tuple(video_ids), counts, fixed=False, dim=dim, dtype="float16", timed=False, source_sizes=sizes)
    for place, header in stored_headers(Path(out), recipe).items():
        if header.layout.dim != dim:
            raise FeatureError(
                f"{place} has rows of {header.layout.dim:,} numbers, {dim:,} are asked for\n"
                "Remove it to start again, or choose another output."
            )
    start = progress or (lambda title, total: nullcontext(lambda steps: None))
    with feature_writer(Path(out), layout, recipe, report=report) as writer:
        pending = writer.pending.tolist()
        with start("writing word features", len(pending)) as advance:
            for position in pending:
                rows = np.stack([word_vector(word, dim) for word in words[video_ids[position]]])
                writer.put(position, VideoRows(rows))
                advance(1)
        writer.finish()
    return Path(out)


def _read_words(manifest: Manifest, folder: Path) -> dict[str, list[str]]:
    """Return the words of each video; refuse videos without a word, and ids that cannot name features."""
    words = {
        video_id: split_words(description) or split_words(script)
        for video_id, (description, script) in read_texts(manifest, folder).items()
    }
    if wrong := [repr(video_id) for video_id in words if not is_usable_id(video_id)]:
        raise FeatureError(f"these ids cannot name features in a file: {first_few(wrong)}; rename these videos")
    if empty := [video_id for video_id, found in words.items() if not found]:
        count = write_count(len(empty), "video has", "videos have")
        raise FeatureError(
            f"{count} no word in descriptions or script: {first_few(empty)}; a video needs at least one row.\n"
            f"The folder is {folder}. {manifest.remedy}"
        )
    return words
