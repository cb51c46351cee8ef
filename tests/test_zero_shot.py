"""Text as a classifier: prompts of class names, text vectors, and ``zero-shot`` in a world with known cosines."""

import json
import re
import zipfile

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from material import released_split
from text_world import CLASSES, WIDTH, fake_encoder, make_features, text_vectors

from meidbench.baselines.class_text import (
    ClassText,
    clean_class_name,
    default_templates,
    embed_classes,
    make_class_text,
    make_prompts,
    read_class_text,
    read_prompts,
)
from meidbench.baselines.methods import read_recipe_file
from meidbench.baselines.zero_shot import normalise_rows, parse_pool, pool_cosines, score_zero_shot
from meidbench.cli import main
from meidbench.errors import FeatureError, MeidbenchError, RequestError
from meidbench.extraction.encoders.encoder import TextEncoder
from meidbench.features import open_features
from meidbench.features.packing import pack
from meidbench.features.simulation import simulate_features, simulate_split
from meidbench.names import DATASETS, WATERMARKS
from meidbench.predictions.align import align_predictions, read_predictions
from meidbench.splits.split import write_split

# --- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cleaned"), [
    ("Holding_some_toy/s", "holding some toy"),
    ("Putting a toy/toys away", "putting a toy away"),
    ("Putting toy/toys away", "putting toys away"),
    ("Painting a bus/es", "painting a bus"),
    ("toy(s) on a shelf.", "toy on a shelf"),
    ("Looking at a toy/kite/box", "looking at a toy or kite or box"),
    ("Pulling/Pushing a toy", "pulling or pushing a toy"),
    ("makingAToyBoat", "making a toy boat"),
    ("GPSToyWithTV", "gps toy with tv"),
    ("4DPrintingOfToys", "4d printing of toys"),
    ("dog'sToy", "dog's toy"),
    ("toy:wooden", "wooden toy"),
    ("Note: a toy", "note a toy"),
    ("Someone is juggling", "juggling"),
    ("hide-and-hunt", "hide-and-hunt"),
    ("  two   blanks ", "two blanks"),
])  # fmt: skip
def test_class_names_become_words(name, cleaned):
    assert clean_class_name(name) == cleaned
    assert clean_class_name(cleaned) == cleaned  # a clean name stays


def test_rules_of_a_benchmark_are_its_own():
    assert (clean_class_name("turn-left"), clean_class_name("turn-left", "epic100-verbs")) == ("turn-left", "turn left")


def test_every_benchmark_has_templates_for_one_name():
    content = read_recipe_file("prompts")
    assert set(content["benchmarks"]) >= {"charadeslt", "charadesegolt"}
    for dataset in (*DATASETS, *content["benchmarks"], "other"):
        templates = default_templates(dataset)
        assert len(templates) == len(set(templates)) >= 3 and all(text.count("{}") == 1 for text in templates)
    assert default_templates("videolt") == default_templates() != default_templates("charadeslt")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_real_class_names_become_distinct_plain_words(dataset):
    names = released_split(dataset).class_names
    cleaned = [clean_class_name(name, dataset) for name in names]
    assert len(set(cleaned)) == len(names)
    assert [text for text in cleaned if not re.fullmatch(r"[a-z0-9]['a-z0-9-]*( [a-z0-9]['a-z0-9-]*)*", text)] == []
    changed = sum(text != name.lower() for text, name in zip(cleaned, names, strict=True))
    assert changed == {"charadeslt": 49, "charadesegolt": 49, "videolt": 765, "animalkingdom": 0}[dataset]


def test_prompts_are_templates_or_the_users_own(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"B": "one", "C": ["two", "three"]}))
    found = make_prompts(["A_toy", "B", "C"], ["see {}.", "hear {}"], own=read_prompts(path))
    assert found == (("see a toy.", "hear a toy"), ("one",), ("two", "three"))
    assert make_prompts(["A_toy"])[0] == tuple(text.replace("{}", "a toy") for text in default_templates())
    for content in ({"B": []}, {"B": 3}, {"B": [""]}, {"B": ["x", 3]}):
        path.write_text(json.dumps(content))
        with pytest.raises(RequestError, match="the prompts of B are neither a text nor a list of texts"):
            read_prompts(path)
    path.write_text("a photo")
    with pytest.raises(RequestError, match=r'is damaged: .*; expected JSON: \{"NAME": "PROMPT" or'):
        read_prompts(path)
    with pytest.raises(RequestError, match=r"must contain \{\} once, for the class name; got 'a photo'"):
        make_prompts(["A"], ["a photo", "a {}"])
    with pytest.raises(RequestError, match=r"1 unknown class\(es\): sitting down \(did you mean sitting_down\?\)"):
        make_prompts(["sitting_down", "other"], own={"sitting down": ["x"]})


# --- text vectors ---------------------------------------------------------------------------------------------------


def test_templates_are_averaged_as_unit_vectors_and_normalised_again():
    table = {"a X": [3.0, 0.0], "b X": [0.0, 0.5], "a Y": [0.0, -2.0], "b Y": [0.0, -7.0]}
    calls = []

    def encode(texts):
        calls.append(list(texts))
        return np.array([table[text] for text in texts], np.float32)

    encoder = TextEncoder(encode, 20.0, -3.0, "hf:toy", "abc")
    text = embed_classes(("X", "Y"), encoder, (("a X", "b X"), ("a Y", "b Y", "a Y")), ("a {}", "b {}"))
    half = np.sqrt(0.5)  # lengths of 3 and 0.5 do not matter
    np.testing.assert_allclose(text.vectors, [[half, half], [0.0, -1.0]], atol=1e-7)
    assert text.vectors.dtype == np.float32 and calls == [list(table)]  # a text is encoded once
    assert (text.scale, text.bias, text.encoder, text.revision) == (20.0, -3.0, "hf:toy", "abc")
    assert text.templates == ("a {}", "b {}") and text.class_names == ("X", "Y")
    table["a X"] = [0.0, 0.0]
    with pytest.raises(FeatureError, match=r"hf:toy gives zero, NaN or infinity for 1 prompt\(s\): a X"):
        embed_classes(("X", "Y"), encoder, (("a X", "b X"), ("a Y",)))


def test_many_prompts_are_encoded_in_several_calls():
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return np.array([[float(text), 1.0] for text in texts], np.float32)

    prompts = tuple((str(number),) for number in range(600))
    text = embed_classes(list(map(str, range(600))), TextEncoder(encode, 1.0), prompts)
    assert sizes == [256, 256, 88]
    numbers = np.stack([np.arange(600.0), np.ones(600)], axis=1)
    np.testing.assert_allclose(text.vectors, numbers / np.linalg.norm(numbers, axis=1, keepdims=True), atol=1e-6)


def test_text_is_written_and_read_the_same(tmp_path):
    text = ClassText(text_vectors(), 50.0, -2.0, CLASSES, "hf:toy", "abc", ("a {}",), tuple((n,) for n in CLASSES))
    text.write(tmp_path / "text.npz")
    again = read_class_text(tmp_path / "text.npz")
    for name in ("scale", "bias", "class_names", "encoder", "revision", "templates", "prompts", "digest"):
        assert getattr(again, name) == getattr(text, name), name
    assert again.vectors.tobytes() == text.vectors.tobytes()
    assert ClassText(text.vectors, 50.0, -1.0).digest != text.digest != ClassText(text.vectors, 51.0, -2.0).digest
    facts = text.to_facts()
    assert facts.pop("text_digest") == text.digest
    assert facts == {"text_encoder": "hf:toy", "text_revision": "abc", "templates": ["a {}"]}


def test_vectors_alone_are_text_of_any_length(tmp_path):
    np.savez(tmp_path / "bare.npz", vectors=np.array([[3.0, 4.0], [0.0, 2.0]]))
    text = read_class_text(tmp_path / "bare.npz")
    np.testing.assert_allclose(text.vectors, [[0.6, 0.8], [0.0, 1.0]], atol=1e-7)
    assert (text.scale, text.bias, text.class_names, text.encoder) == (100.0, 0.0, (), "")


def damaged(path, kind):
    vectors = np.eye(3, dtype=np.float32)
    if kind == "text":
        path.write_text("no archive")
    elif kind == "cut":
        np.savez(path, vectors=vectors)
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "objects":
        np.savez(path, vectors=np.array([{}, {}], dtype=object))
    elif kind == "facts":
        np.savez(path, vectors=vectors, facts=np.array("[1"))
    elif kind == "other":
        np.savez(path, scores=vectors)
    else:
        np.savez(path, **{"vectors": vectors, **kind})


@pytest.mark.parametrize(("kind", "said"), [
    ("text", "cannot read .*, which is text, or of an unknown kind"),
    ("cut", "cannot read"), ("objects", "cannot read"), ("facts", "cannot read"),
    ("other", "cannot read"),
    ({"vectors": np.eye(3, dtype=int)}, r"must be floats \(C, D\)"),
    ({"vectors": np.ones(3)}, r"must be floats \(C, D\)"),
    ({"vectors": np.diag([1.0, 0.0, np.nan])}, r"2 text vector\(s\) are zero, NaN or infinite: rows 1, 2"),
    ({"class_names": np.array(["a"])}, "3 text vectors and 1 class names"),
    ({"scale": np.float64(0)}, "scale must be a number"),
    ({"bias": np.float64(np.nan)}, "bias must be a number"),
])  # fmt: skip
def test_a_damaged_file_of_text_is_refused(tmp_path, kind, said):
    damaged(tmp_path / "text.npz", kind)
    with pytest.raises(FeatureError, match=f"{said}.*expected an NPZ archive with the array vectors"):
        read_class_text(tmp_path / "text.npz")
    with pytest.raises(FeatureError, match="there is no file of text vectors"):
        read_class_text(tmp_path / "gone.npz")


def test_no_object_of_a_file_of_text_is_loaded(tmp_path):
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("vectors.npy", b"\x80\x04cos\nsystem\n")
    with pytest.raises(FeatureError, match=r"must be floats \(C, D\)"):
        read_class_text(tmp_path / "text.npz")


# --- scores ---------------------------------------------------------------------------------------------------------


def naive_scores(features, video_ids, vectors, pool, scale, bias):
    """The definition, in float64 and one number at a time."""
    scores = []
    for video_id in video_ids:
        logits = []
        for vector in np.asarray(vectors, np.float64):
            cosines = []
            for row in np.asarray(features.read(video_id), np.float64):
                length = np.sqrt(sum(value * value for value in row))
                cosines.append(sum(a * b for a, b in zip(row, vector, strict=True)) / length if length else 0.0)
            count = {"mean": len(cosines), "max": 1}.get(pool) or int(pool[4:])
            kept = sorted(cosines, reverse=True)[:count]
            logits.append(scale * sum(kept) / len(kept) + bias)
        scores.append(logits)
    return np.array(scores)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("pool", ["mean", "max", "top-3", "top-50"])
def test_scores_are_those_of_a_loop(tmp_path, pool, dtype):
    split = simulate_split((6, 4, 9), num_classes=5)
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for number, video_id in enumerate(split.video_ids("test")):
            rows = generator.normal(size=(1 + number, 7)) * (10.0 ** (number - 4))
            rows[-1] *= number != 3  # a row of zeros
            file[video_id] = rows.astype(dtype)
    features, vectors = open_features(tmp_path / "features.h5"), generator.normal(size=(5, 7))
    text = ClassText(vectors, 37.5, -4.0)
    scores = score_zero_shot(split, "test", features, text, pool=pool)
    assert scores.dtype == np.float32
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = naive_scores(features, split.video_ids("test"), units, pool, 37.5, -4.0)
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def test_the_known_cosines_of_a_made_up_world():
    vectors = np.eye(3, 4, dtype=np.float32)
    rows = np.array([[3, 4, 0, 0], [0, 0.6, 0, 0.8], [0, 0, 5, 0], [0, 0, 0, 1]], np.float16)  # cosines below
    known = {"mean": [0.15, 0.35, 0.25], "max": [0.6, 0.8, 1.0], "top-2": [0.3, 0.7, 0.5], "top-9": [0.15, 0.35, 0.25]}
    for pool, cosines in known.items():
        np.testing.assert_allclose(pool_cosines(rows, vectors, parse_pool(pool)), cosines, atol=2e-4)


@pytest.mark.parametrize("pool", ["mean", "max", "top-5"])
def test_a_long_video_is_scored_block_by_block(pool, monkeypatch):
    generator = np.random.default_rng(1)
    rows, vectors = generator.normal(size=(100, 6)).astype(np.float32), normalise_rows(generator.normal(size=(4, 6)))
    whole = pool_cosines(rows, vectors, parse_pool(pool))
    monkeypatch.setattr("meidbench.baselines.zero_shot._ROWS_PER_BLOCK", 7)
    np.testing.assert_allclose(pool_cosines(rows, vectors, parse_pool(pool)), whole, atol=1e-7)


def test_numbers_of_every_size_have_a_direction():
    for dtype, size in (("float16", 6e4), ("float16", 1e-7), ("float32", 1e38), ("float32", 1e-40)):
        rows = normalise_rows(np.array([[size, -size], [0, 0]], dtype))
        np.testing.assert_allclose(rows, [[np.sqrt(0.5), -np.sqrt(0.5)], [0, 0]], rtol=1e-3)


@pytest.mark.parametrize("pool", ["median", "top-0", "top-", "top-x", "top-5.0", "Max", "top-99999999"])
def test_another_pool_is_refused(pool):
    with pytest.raises(RequestError, match="known: mean, max, top-K such as top-5"):
        parse_pool(pool)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A split, its features as an image-text model would give them, and that model's text encoder."""
    split = simulate_split((30, 10, 20), num_classes=len(CLASSES))
    write_split(split, tmp_path / "split.parquet")
    path = make_features(tmp_path / "features.h5", split)
    loads = []

    def load(name, *, revision="", report=None):
        loads.append((name, revision))
        return fake_encoder(name, revision)

    monkeypatch.setattr("meidbench.extraction.encoders.encoder.load_text_encoder", load)
    return split, path, loads


@pytest.fixture
def invoke(world, tmp_path):
    def call(*arguments, features=world[1], out="out.parquet"):
        given = ["--features", features, "--split", tmp_path / "split.parquet", "--out", tmp_path / out, *arguments]
        return CliRunner().invoke(main, ["zero-shot", *map(str, given)])

    return call


def test_the_command_writes_a_prediction_file_like_any_other(world, invoke, tmp_path):
    split, path, loads = world
    outcome = invoke("--json")
    assert outcome.exit_code == 0, outcome.output
    assert loads == [("hf:toy/clip", "abc123")]  # the features' own, with its revision
    content = json.loads(outcome.stdout)
    assert content["predictions"] == str(tmp_path / "out.parquet") and content["classes"] == len(CLASSES)
    assert (content["text_encoder"], content["text_revision"], content["pool"]) == ("hf:toy/clip", "abc123", "mean")
    read = read_predictions(tmp_path / "out.parquet")
    run = read.metadata["run"]
    assert run["method"] == "zero-shot" and run["templates"] == list(default_templates())
    assert run["budget"] == {"stages": [], "trials": 1} and "backbone" not in run
    scores = align_predictions(read, split, "test")
    expected = naive_scores(open_features(path), split.video_ids("test"), text_vectors(), "mean", 20.0, -3.0)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    scored = CliRunner().invoke(
        main, ["evaluate", str(tmp_path / "out.parquet"), "--split", str(tmp_path / "split.parquet"), "--json", "-"]
    )
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["warnings"] == [] and json.loads(scored.stdout)["mAP"]["overall"] > 0.99


def test_text_is_saved_and_taken_again_without_an_encoder(world, invoke, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({CLASSES[0]: "nothing"}))
    first = invoke("--prompt", "one {}", "--prompt", "two {}", "--prompts", own, "--pool", "top-2", "--save-text",
                   tmp_path / "text.npz", out="first.parquet")  # fmt: skip
    assert first.exit_code == 0 and first.stdout == f"wrote {tmp_path / 'first.parquet'}\n", first.output
    text = read_class_text(tmp_path / "text.npz")
    assert text.prompts[:2] == (("nothing",), (f"one {CLASSES[1]}", f"two {CLASSES[1]}"))
    assert text.templates == ("one {}", "two {}")
    second = invoke("--text", tmp_path / "text.npz", "--pool", "top-2", out="second.parquet")
    assert second.exit_code == 0 and len(world[2]) == 1, second.output
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()
    both = invoke("--text", tmp_path / "text.npz", "--prompt", "a {}")
    assert both.exit_code == 2 and "leave out --text-encoder, --prompt and --prompts" in both.stderr


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--pool", "median"], 2, "unknown pool 'median'"),
    (["--prompt", "a photo"], 2, "must contain {} once"),
    (["--text-encoder", "hf:other/clip"], 2, "has features of hf:toy/clip, not of hf:other/clip"),
    (["--subset", "val", "--text", "nope.npz"], 2, "does not exist"),
])  # fmt: skip
def test_wrong_calls_are_refused(invoke, tmp_path, arguments, code, said):
    outcome = invoke(*arguments)
    assert outcome.exit_code == code and said in outcome.stderr and not (tmp_path / "out.parquet").exists()


def test_the_named_encoder_may_be_that_of_the_features_with_a_revision(world, invoke, tmp_path):
    assert invoke("--text-encoder", "hf:toy/clip").exit_code == 0
    assert invoke("--text-encoder", "hf:toy/clip@def").exit_code == 0
    assert invoke("--text-encoder", f"hf:{tmp_path}").exit_code == 0  # a folder, which may be a copy of the model
    assert world[2] == [("hf:toy/clip", "abc123"), ("hf:toy/clip@def", ""), (f"hf:{tmp_path}", "")]
    assert invoke("--text-encoder", f"openclip:{tmp_path}").exit_code == 2


def test_features_without_a_recipe_need_a_name_and_others_have_no_text(world, tmp_path, invoke):
    split, path, loads = world
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        for video_id in split.video_ids("test"):
            file[video_id] = open_features(path).read(video_id)
    outcome = invoke(features=tmp_path / "foreign.h5")
    assert outcome.exit_code == 2 and "is unknown; name it (zero-shot: --text-encoder NAME)" in outcome.stderr
    assert invoke("--text-encoder", "hf:any", features=tmp_path / "foreign.h5").exit_code == 0
    assert loads == [("hf:any", "")]
    simulated = simulate_features(split, tmp_path / "simulated.h5", frames=3, dim=WIDTH)
    outcome = invoke(features=simulated)
    assert outcome.exit_code == 2 and "has features of simulation, which has no text encoder" in outcome.stderr
    ClassText(text_vectors()).write(tmp_path / "text.npz")
    outcome = invoke("--text", tmp_path / "text.npz", features=simulated)
    assert outcome.exit_code == 0 and f"warning: {WATERMARKS['simulation']}" in outcome.stderr
    assert read_predictions(tmp_path / "out.parquet").metadata["run"]["backbone"] == "simulation"


def test_packed_features_have_the_encoder_that_the_user_names(world, tmp_path, invoke):
    split, path, loads = world
    (tmp_path / "npy").mkdir()
    for video_id in split.video_ids("test"):
        np.save(tmp_path / "npy" / f"{video_id}.npy", open_features(path).read(video_id))
    pack(tmp_path / "npy", tmp_path / "unknown.h5", dtype="int8")
    outcome = invoke(features=tmp_path / "unknown.h5")
    assert outcome.exit_code == 2 and "is unknown; name it (zero-shot: --text-encoder NAME)" in outcome.stderr
    assert invoke("--text-encoder", "hf:toy/clip", features=tmp_path / "unknown.h5").exit_code == 0
    scores = align_predictions(read_predictions(tmp_path / "out.parquet"), split, "test")
    packed = open_features(tmp_path / "unknown.h5")
    expected = naive_scores(packed, split.video_ids("test"), text_vectors(), "mean", 20.0, -3.0)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    pack(tmp_path / "npy", tmp_path / "named.h5", backbone="hf:toy/clip@v1")
    for arguments in ((), ("--text-encoder", "hf:toy/clip"), ("--text-encoder", "hf:toy/clip@v1")):
        assert invoke(*arguments, features=tmp_path / "named.h5").exit_code == 0
    assert loads == [("hf:toy/clip", ""), *[("hf:toy/clip", "v1")] * 2, ("hf:toy/clip@v1", "")]


def test_text_of_another_revision_is_told(world, invoke, monkeypatch):
    monkeypatch.setattr(
        "meidbench.extraction.encoders.encoder.load_text_encoder",
        lambda name, *, revision="", report=None: fake_encoder(name, revision or "def456"),
    )
    assert "warning" not in invoke().stderr
    outcome = invoke("--text-encoder", "hf:toy/clip@new")
    said = "warning: the text is of revision def456 of hf:toy/clip, the features are of abc123"
    assert outcome.exit_code == 0 and said in outcome.stderr


def test_text_of_other_classes_or_of_another_width_is_refused(world, tmp_path, invoke):
    for vectors, names, said in (
        (
            text_vectors()[:, :-1],
            (),
            f"have {WIDTH - 1} numbers, the rows in .* {WIDTH}: they are not of one image-text",
        ),
        (text_vectors()[:-1], (), f"the text has {len(CLASSES) - 1} classes, simulatedlt has {len(CLASSES)}"),
        (text_vectors(), CLASSES[::-1], "other class names than simulatedlt in .* place"),
    ):
        ClassText(vectors, class_names=names).write(tmp_path / "text.npz")
        outcome = invoke("--text", tmp_path / "text.npz")
        assert outcome.exit_code == 1 and re.search(said, outcome.stderr), outcome.stderr


def test_missing_damaged_and_infinite_videos_are_named(world, tmp_path, invoke):
    split, path, _ = world
    videos = split.video_ids("test")
    rows = {video_id: open_features(path).read(video_id) for video_id in videos}
    rows[videos[2]][0, 0] = np.nan
    for name, kept, said in (
        ("some.h5", videos[1:], f"1 missing: {videos[0]}"),
        ("all.h5", videos, f"hold NaN or infinity: {videos[2]}"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            for video_id in kept:
                file[video_id] = rows[video_id]
        outcome = invoke("--text-encoder", "hf:any", features=tmp_path / name)
        assert outcome.exit_code == 1 and said in outcome.stderr, outcome.stderr
    stored, content = rows[videos[3]].tobytes(), path.read_bytes()
    assert stored in content
    path.write_bytes(content.replace(stored, bytes(len(stored)), 1))
    outcome = invoke()
    assert outcome.exit_code == 1 and "cannot be read: " in outcome.stderr and "checksum differs" in outcome.stderr
    assert not (tmp_path / "out.parquet").exists()


def test_an_encoder_of_another_width_is_refused(world, monkeypatch):
    split, path, _ = world
    narrow = TextEncoder(lambda texts: np.ones((len(texts), 3), np.float32), 1.0, name="hf:toy/clip")
    monkeypatch.setattr("meidbench.extraction.encoders.encoder.load_text_encoder", lambda *names, **options: narrow)
    with pytest.raises(MeidbenchError, match="the text vectors of hf:toy/clip have 3 numbers"):
        make_class_text(split, open_features(path))
