"""Text as a classifier: class names become prompts, and a text encoder's vectors of them a linear classifier."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import numpy as np
import numpy.typing as npt

from meidbench.baselines.inputs import read_feature_header
from meidbench.baselines.methods import read_recipe_file
from meidbench.checks import in_range, parse_json, read_json, show, suggest
from meidbench.errors import FeatureError, MeidbenchError, RequestError, describe_content, first_few
from meidbench.features import FeatureSource
from meidbench.files import render_json, written_whole
from meidbench.names import ProgressBar, Report
from meidbench.splits.split import Split

if TYPE_CHECKING:
    from meidbench.extraction.encoders.encoder import TextEncoder

Vectors = npt.NDArray[np.float32]
Prompts = tuple[tuple[str, ...], ...]  # of each class
_TEXTS_PER_CALL = 256
_UNIT = 1e-5  # a vector whose length differs from 1 by less is not normalised again
_EXPECTED = "expected an NPZ archive with the array vectors (C, D); --save-text of 'meidbench zero-shot' writes one"
_LIBRARIES = ("hf", "openclip")  # whose models may have a text encoder


@dataclass(frozen=True, eq=False)
class ClassText:
    """The text vectors of all classes: a linear classifier of the image rows of the same model.

    Attributes
    ----------
    vectors : (C, D) float32 array
        Of length 1.
    scale, bias : float
        The logit of a row with a class is ``scale * cosine + bias``.
    class_names : tuple of str
        In the order of the vectors; empty where unknown.
    encoder, revision : str
        The model as on the command line; empty where unknown.
    templates : tuple of str
        Those that the prompts were made from; empty where a file gave every prompt.
    prompts : tuple of tuple of str
        Of each class.
    """

    vectors: Vectors
    scale: float = 100.0  # CLIP's, and the largest that its training allows
    bias: float = 0.0
    class_names: tuple[str, ...] = ()
    encoder: str = ""
    revision: str = ""
    templates: tuple[str, ...] = ()
    prompts: Prompts = ()

    def __post_init__(self) -> None:
        given = np.asarray(self.vectors)
        if given.ndim != 2 or given.dtype.kind != "f" or not all(given.shape):
            raise FeatureError(f"text vectors must be floats (C, D), got {given.dtype} of shape {given.shape}")
        if self.class_names and len(self.class_names) != len(given):
            raise FeatureError(f"there are {len(given):,} text vectors and {len(self.class_names):,} class names")
        lengths = np.linalg.norm(given.astype(np.float64), axis=1)
        if wrong := np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)).tolist():
            raise FeatureError(f"{len(wrong):,} text vector(s) are zero, NaN or infinite: rows {first_few(wrong)}")
        in_range("scale", self.scale, 1e-6, 1e6)
        in_range("bias", self.bias, -1e6, 1e6)
        if (np.abs(lengths - 1) > _UNIT).any():
            given = given / lengths[:, None]
        object.__setattr__(self, "vectors", np.ascontiguousarray(given, np.float32))

    @cached_property
    def digest(self) -> str:
        """The sha256 of the classifier: the vectors, the scale and the bias."""
        numbers = np.array([self.scale, self.bias], "<f8").tobytes()
        return hashlib.sha256(f"{self.vectors.shape}".encode() + self.vectors.tobytes() + numbers).hexdigest()

    def to_facts(self) -> dict[str, Any]:
        """Return the facts that a prediction file holds."""
        named = {"text_encoder": self.encoder, "text_revision": self.revision, "templates": list(self.templates)}
        return {name: value for name, value in named.items() if value} | {"text_digest": self.digest}

    def check(self, split: Split, features: FeatureSource) -> None:
        """Refuse text of other classes than those of a split, or of another width than features."""
        if len(self.vectors) != split.num_classes:
            raise FeatureError(f"the text has {len(self.vectors):,} classes, {split.dataset} has {split.num_classes:,}")
        names = self.class_names or split.class_names
        if differing := [f"{a!r} for {b!r}" for a, b in zip(names, split.class_names, strict=True) if a != b]:
            raise FeatureError(
                f"the text has other class names than {split.dataset} in {len(differing):,} place(s): "
                f"{first_few(differing)}; make it again for this split"
            )
        if (width := self.vectors.shape[1]) != features.dim:
            raise FeatureError(
                f"the text vectors{f' of {self.encoder}' if self.encoder else ''} have {width:,} numbers, the rows in "
                f"{features.path} {features.dim:,}: they are not of one image-text model; extract the features with it "
                f"(extract-features --backbone {self.encoder or 'hf:NAME'}), or take the text of theirs"
            )

    def write(self, path: Path) -> None:
        """Write an NPZ archive that ``read_class_text`` reads."""
        facts: dict[str, Any] = {"encoder": self.encoder, "revision": self.revision}
        facts |= {"templates": list(self.templates), "prompts": [list(texts) for texts in self.prompts]}
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                vectors=self.vectors,
                scale=np.float64(self.scale),
                bias=np.float64(self.bias),
                class_names=np.array(self.class_names, dtype=np.str_),
                facts=np.array(render_json(facts)),
            )


def read_class_text(path: Path) -> ClassText:
    """Read the text vectors of classes from an NPZ archive.

    It has ``vectors`` (C, D), of any length; and, where known, ``scale``, ``bias``, ``class_names`` (C,) and ``facts``,
    JSON as ``ClassText.write`` has it.

    Raises
    ------
    FeatureError
        It is missing, damaged or no such archive. Pickled objects are never loaded.
    """
    if not path.is_file():
        raise FeatureError(f"there is no file of text vectors {path}; {_EXPECTED}")
    if not is_zipfile(path):  # of other files, NumPy's message speaks of pickles
        kind = describe_content(path) or "text, or of an unknown kind"
        raise FeatureError(f"cannot read {path}, which is {kind}; {_EXPECTED}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files}
        facts = parse_json(str(held["facts"])) if "facts" in held else {}
        return ClassText(
            held["vectors"],
            float(held.get("scale", ClassText.scale)),
            float(held.get("bias", ClassText.bias)),
            tuple(map(str, held.get("class_names", ()))),
            str(facts.get("encoder", "")),
            str(facts.get("revision", "")),
            tuple(map(str, facts.get("templates", ()))),
            tuple(tuple(map(str, texts)) for texts in facts.get("prompts", ())),
        )
    except MeidbenchError as error:
        raise FeatureError(f"{path}: {error}; {_EXPECTED}") from None
    except MemoryError:
        raise
    except Exception as error:  # NumPy reads headers with Python's tokenizer, and zip files raise many kinds
        kind = describe_content(path)
        raise FeatureError(f"cannot read {path}, which is {kind} ({error!r:.200}); {_EXPECTED}") from None


def clean_class_name(name: str, dataset: str = "") -> str:
    r"""Return a class name as words of a sentence, by the rules in ``recipes/prompts.toml``.

    Letters become small: the tokenisers of CLIP and SigLIP do the same.

    Examples
    --------
    >>> clean_class_name("Holding a toy/toys"), clean_class_name("makingAToyBoat"), clean_class_name("boat:toy")
    ('holding a toy', 'making a toy boat', 'toy boat')
    """
    content = read_recipe_file("prompts")
    for pattern, replacement in (*content["cleaning"], *content["benchmarks"].get(dataset, {}).get("cleaning", ())):
        name = re.sub(pattern, replacement, name)
    return " ".join(name.lower().split())


def default_templates(dataset: str = "") -> tuple[str, ...]:
    """Return the templates of a benchmark; those for any class where it has none of its own."""
    content = read_recipe_file("prompts")
    return tuple(content["templates"][content["benchmarks"].get(dataset, {}).get("templates", "general")])


def make_prompts(
    class_names: Sequence[str],
    templates: Sequence[str] = (),
    *,
    dataset: str = "",
    own: Mapping[str, Sequence[str]] | None = None,
) -> Prompts:
    """Return the prompts of each class.

    Parameters
    ----------
    class_names : sequence of str
    templates : sequence of str, optional
        Each contains {}, where the cleaned class name stands; by default those of the benchmark.
    dataset : str
        The benchmark, which may have templates and rules of its own.
    own : mapping, optional
        Whole prompts by class name, which replace those of the templates.

    Raises
    ------
    RequestError
        A template lacks {}, or ``own`` names an unknown class.

    Examples
    --------
    >>> make_prompts(["Sitting_down", "Other"], ["a photo of {}."], own={"Other": ["something else"]})
    (('a photo of sitting down.',), ('something else',))
    """
    own, known = own or {}, set(class_names)
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise RequestError(f"a template must contain {{}} once, for the class name; got {first_few(map(show, wrong))}")
    if unknown := [name for name in own if name not in known]:
        like = suggest(unknown[0], class_names)
        raise RequestError(f"the prompts name {len(unknown):,} unknown class(es): {first_few(unknown)}{like}")
    chosen = tuple(templates) or default_templates(dataset)
    prompts = []
    for name in class_names:
        words = clean_class_name(name, dataset)
        prompts.append(tuple(own[name] if name in own else (template.replace("{}", words) for template in chosen)))
    return tuple(prompts)


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Read prompts by class name from JSON: ``{"NAME": "PROMPT"}`` or ``{"NAME": ["PROMPT", ...]}``.

    RequestError: it is no such JSON.
    """
    try:
        content = read_json(path, RequestError)
    except RequestError as error:
        raise RequestError(f'{error}; expected JSON: {{"NAME": "PROMPT" or ["PROMPT", ...]}}') from None
    found = {name: (texts,) if isinstance(texts, str) else texts for name, texts in content.items()}
    wrong = [
        name
        for name, texts in found.items()
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) and text for text in texts)
    ]
    if wrong:
        raise RequestError(f"{path}: the prompts of {first_few(wrong)} are neither a text nor a list of texts")
    return {name: tuple(texts) for name, texts in found.items()}


def embed_classes(
    class_names: Sequence[str],
    encoder: "TextEncoder",
    prompts: Prompts,
    templates: Sequence[str] = (),
    *,
    progress: ProgressBar | None = None,
) -> ClassText:
    """Return the text vectors of classes: each prompt's vector is normalised, their mean is normalised again.

    Radford et al. 2021 (CLIP), section 3.1.4: the ensemble is built over the embeddings, not over probabilities, so
    that it costs one vector per class.

    Parameters
    ----------
    class_names : sequence of C str
    encoder : TextEncoder
    prompts : tuple of tuple of str
        Of each class; see ``make_prompts``.
    templates : sequence of str
        For the record.
    progress : callable, optional

    Raises
    ------
    FeatureError
        A vector is zero or not finite.
    """
    progress = progress or (lambda title, total: nullcontext(lambda steps: None))
    texts = list(dict.fromkeys(text for several in prompts for text in several))
    parts = []
    with progress("encoding prompts", len(texts)) as advance:
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            several = texts[start : start + _TEXTS_PER_CALL]
            parts.append(np.asarray(encoder.encode(several), np.float64))
            advance(len(several))
    vectors = np.concatenate(parts)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if wrong := [texts[row] for row in np.flatnonzero(~(np.isfinite(lengths[:, 0]) & (lengths[:, 0] > 0)))]:
        raise FeatureError(
            f"{encoder.name} gives zero, NaN or infinity for {len(wrong):,} prompt(s): {first_few(wrong)}"
        )
    place = {text: row for row, text in enumerate(texts)}
    units = vectors / lengths
    means = np.stack([units[[place[text] for text in several]].mean(axis=0) for several in prompts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return ClassText(
        means.astype(np.float32),
        encoder.scale,
        encoder.bias,
        tuple(class_names),
        encoder.name,
        encoder.revision,
        tuple(templates),
        prompts,
    )


def make_class_text(
    split: Split,
    features: FeatureSource,
    *,
    encoder: str = "",
    templates: Sequence[str] = (),
    own: Mapping[str, Sequence[str]] | None = None,
    progress: ProgressBar | None = None,
    report: Report = lambda line: None,
) -> ClassText:
    """Return the text vectors of a split's classes by the text encoder of the model that made the features.

    Parameters
    ----------
    encoder : str
        Its name, for features whose encoder is unknown; by default that in the recipe of the features, with its
        revision.
    templates, own
        As for ``make_prompts``.

    Raises
    ------
    RequestError
        The features are of another encoder, or of an unknown one and none is named.
    FeatureError
        The encoder cannot be loaded, or has another width.
    """
    from meidbench.extraction.encoders.encoder import load_text_encoder

    name, revision = _choose_encoder(features, encoder)
    own, chosen = own or {}, tuple(templates) or default_templates(split.dataset)
    prompts = make_prompts(split.class_names, chosen, own=own, dataset=split.dataset)
    loaded = load_text_encoder(name, revision=revision, report=report)
    header = read_feature_header(features)
    stored = "" if header is None else str(header.recipe.get("revision", ""))
    if stored and loaded.revision and loaded.revision != stored:
        report(f"warning: the text is of revision {loaded.revision} of {loaded.name}, the features are of {stored}")
    used = () if all(class_name in own for class_name in split.class_names) else chosen
    text = embed_classes(split.class_names, loaded, prompts, used, progress=progress)
    text.check(split, features)
    return text


def _choose_encoder(features: FeatureSource, asked: str) -> tuple[str, str]:
    """Return name and revision of the text encoder for features; refuse that of another model."""
    header = read_feature_header(features)
    recipe = {} if header is None else header.recipe
    made_by, revision = str(recipe.get("backbone", "")), str(recipe.get("revision", ""))
    if made_by == "unknown":  # as pack-features writes it
        made_by = ""
    if not revision and not Path(made_by.partition(":")[2]).is_dir():  # pack-features --backbone NAME@REVISION
        made_by, _, revision = made_by.partition("@")
    remedy = "name a file of text vectors (zero-shot: --text FILE, train: --set model.text=FILE)"
    if not asked and not made_by:
        raise RequestError(
            f"the encoder of {features.path} is unknown; name it (zero-shot: --text-encoder NAME), or {remedy}"
        )
    if not asked:
        if made_by.partition(":")[0] not in _LIBRARIES:
            raise RequestError(
                f"{features.path} has features of {made_by}, which has no text encoder; extract them with an "
                f"image-text model (extract-features --backbone hf:openai/clip-vit-base-patch16), or {remedy}"
            )
        return made_by, revision
    library, _, rest = asked.partition(":")
    is_folder = Path(rest).is_dir()  # it may be a copy of the model that the features are of
    plain = asked if is_folder else asked.partition("@")[0]
    if made_by and plain != made_by and not (is_folder and library == made_by.partition(":")[0]):
        raise RequestError(
            f"{features.path} has features of {made_by}, not of {plain}: the vectors of two models cannot be compared; "
            f"name that of the features, or {remedy}"
        )
    return asked, revision if asked == made_by else ""
