"""Simulated features: what they depend on, where classes show, and how they are written."""

import contextlib
import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from material import REAL, real_data
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

import meidbench.features.simulation as simulation
from meidbench.annotations.tables import split_from_files
from meidbench.errors import FeatureError, SplitError
from meidbench.features import open_features
from meidbench.features.simulation import (
    draw_appearances,
    draw_structure,
    frame_features,
    simulate_features,
    video_generator,
)
from meidbench.splits.released import build_released
from meidbench.splits.split import SCHEMA, Split

KNOWN = [[0.80295, 1.37011, 0.63304, 0.0], [0.88489, 0.62232, 3.19719, 2.66107], [1.4623, 13.20641, 2.46013, 0.0]]
SMALL = {"frames": 20, "dim": 32}


def row_of(split, video_id):
    return next(row for row in split.table.to_pylist() if row["video_id"] == video_id)


def invented_split(toy_split, videos):
    """A split of the toy's classes with these videos: id -> (length, [(label, start, end), ...])."""
    rows = [
        {
            "video_id": video_id,
            "subset": "train",
            "labels": sorted({label for label, _, _ in segments}),
            "source": "",
            "length_s": length,
            "subject": "",
            "view": "",
            "pair_id": "",
            "segments": [{"label": label, "start_s": start, "end_s": end} for label, start, end in segments],
        }
        for video_id, (length, segments) in videos.items()
    ]
    return Split(pa.Table.from_pylist(rows, schema=SCHEMA), toy_split.metadata)


@pytest.fixture
def all_shown(monkeypatch):
    """Every segment shows, and equally strongly."""
    monkeypatch.setattr(simulation, "SHOWN_SHARE", 1.0)
    monkeypatch.setattr(simulation, "AMPLITUDE_SPREAD", 0.0)


def test_the_same_arguments_give_the_same_features(toy_split):
    video_id = toy_split.video_ids("train")[0]
    features = frame_features(toy_split, video_id)
    assert features.shape == (60, 256) and features.dtype == np.float32
    assert features.min() >= 0 and np.isfinite(features).all()
    simulation.draw_structure.cache_clear()
    assert np.array_equal(frame_features(toy_split, video_id), features)
    others = [{"seed": 1}, {"difficulty": 0.5}]
    assert all(not np.array_equal(frame_features(toy_split, video_id, **other), features) for other in others)
    assert frame_features(toy_split, video_id, frames=7, dim=33).shape == (7, 33)


def test_what_videos_share_cannot_be_changed_by_accident():
    world = draw_structure(12, 16)
    for field in dataclasses.fields(world):
        with pytest.raises(ValueError, match="read-only"):
            getattr(world, field.name)[0] = 0


def test_a_video_depends_on_its_own_row_alone(toy_split):
    ids = toy_split.video_ids("val")
    shuffled = Split(
        toy_split.table.take(np.random.default_rng(0).permutation(len(toy_split.table))), toy_split.metadata
    )
    alone = Split(toy_split.rows("val").slice(3, 1), toy_split.metadata)
    expected = frame_features(toy_split, ids[3], **SMALL)
    frame_features(toy_split, ids[0], **SMALL)
    assert np.array_equal(frame_features(shuffled, ids[3], **SMALL), expected)
    assert np.array_equal(frame_features(alone, ids[3], **SMALL), expected)
    assert not np.array_equal(frame_features(toy_split, ids[0], **SMALL), expected)


def test_known_features_stay(toy_split):
    """A change of the formula must be seen, and ``FORMULA`` raised; to float rounding, on any machine."""
    assert simulation.FORMULA == 1
    assert draw_structure(12, 4, 5).is_motion.nonzero()[0].tolist() == [4, 9]
    known = frame_features(toy_split, "TOY32315EGO", frames=3, dim=4, seed=5, difficulty=0.1)
    np.testing.assert_allclose(known, KNOWN, rtol=1e-4, atol=1e-4)


def test_generators_of_videos_and_of_the_world_are_apart():
    draws = {video_generator(name, seed).integers(2**62) for name in ("a", "b", "A") for seed in (0, 1)}
    assert len(draws) == 6


@pytest.mark.parametrize("subset", [None, "test"])
def test_the_file_holds_what_each_video_gives(toy_split, tmp_path, subset):
    steps, titles = [], []

    @contextlib.contextmanager
    def progress(title, total):
        titles.append((title, total))
        yield steps.append

    path = simulate_features(toy_split, tmp_path / "new" / "f.h5", subset=subset, progress=progress, seed=3, **SMALL)
    ids = toy_split.video_ids(subset) if subset else toy_split.table.column("video_id").to_pylist()
    source = open_features(path)
    assert source.check(ids).tolist() == [20] * len(ids) and source.dim == 32
    assert titles == [("simulating features", len(ids))] and sum(steps) == len(ids)
    for video_id in ids[:: len(ids) // 7]:
        stored = source.read(video_id)
        assert stored.dtype == np.float16
        assert np.array_equal(stored, frame_features(toy_split, video_id, seed=3, **SMALL).astype(np.float16))
    if subset:
        with pytest.raises(FeatureError, match="missing"):
            source.check(toy_split.video_ids("train"))


def test_the_same_call_gives_the_same_bytes_and_is_not_repeated(toy_split, tmp_path, monkeypatch):
    one = simulate_features(toy_split, tmp_path / "one.h5", **SMALL)
    other = simulate_features(toy_split, tmp_path / "other.h5", **SMALL)
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(simulation, "_render", None)
    assert simulate_features(toy_split, one, **SMALL) == one
    with pytest.raises(FeatureError, match="made with other settings"):
        simulate_features(toy_split, one, seed=1, **SMALL)


def test_a_split_may_be_named_by_its_file(toy_split, toy_split_file, tmp_path):
    path = simulate_features(toy_split_file, tmp_path / "f.h5", subset="val", **SMALL)
    video_id = toy_split.video_ids("val")[0]
    assert np.array_equal(open_features(path).read(video_id), frame_features(toy_split, video_id, **SMALL).astype("f2"))


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([(1, 0.0, 10.0)], [(1, 0, 9)]),
        ([(1, 2.0, 4.0)], [(1, 2, 3)]),
        ([(1, 2.4, 3.6)], [(1, 2, 3)]),
        ([(1, 2.6, 3.4)], [(1, 3, 3)]),  # between the middles of two frames
        ([(1, 4.0, 2.0)], [(1, 2, 3)]),  # ends before it begins
        ([(1, 12.0, 30.0)], [(1, 9, 9)]),  # past the end
        ([(1, 8.0, 30.0)], [(1, 8, 9)]),
        ([(1, -5.0, -2.0)], [(1, 0, 0)]),
        ([(2, 0.0, 1.0), (1, 5.0, 9.0), (2, 3.0, 4.0)], [(2, 0, 0), (1, 5, 8), (2, 3, 3)]),
    ],
)
def test_segments_become_frames(segments, expected):
    """Ten frames over ten seconds: frame t stands for t + 0.5."""
    row = {
        "labels": sorted({label for label, _, _ in segments}),
        "segments": [{"label": label, "start_s": start, "end_s": end} for label, start, end in segments],
        "length_s": 10.0,
    }
    moments = draw_appearances(row, 10, np.random.default_rng(0))
    assert [dataclasses.astuple(moment) for moment in moments] == expected


@pytest.mark.parametrize("length", [float("nan"), None, 0.0, 30.0])
@pytest.mark.parametrize("segments", [[], None])
def test_labels_without_segments_get_one_each(length, segments):
    generator = np.random.default_rng(0)
    row = {"labels": [0, 4], "segments": segments, "length_s": length}
    drawn = [draw_appearances(row, 100, generator) for _ in range(300)]
    assert all([moment.label for moment in moments] == [0, 4] for moments in drawn)
    shares = np.array([(moment.last - moment.first + 1) / 100 for moments in drawn for moment in moments])
    assert 0.19 <= shares.min() < 0.25 and 0.85 < shares.max() <= 0.91
    assert all(0 <= moment.first <= moment.last < 100 for moments in drawn for moment in moments)


def test_a_split_without_segments_can_be_simulated(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_text("video_id,subset,labels\na,train,0\nb,train,1\nc,val,0;1\nd,test,\n")
    split = split_from_files([("", table)], dataset="mine", head_above=1, tail_up_to=0)[0]
    features = {video_id: frame_features(split, video_id, **SMALL) for video_id in "abcd"}
    assert all(array.shape == (20, 32) and np.isfinite(array).all() for array in features.values())


def test_frames_inside_a_segment_look_like_the_class_and_others_do_not(toy_split, all_shown):
    world = draw_structure(12, 256)
    looks = np.flatnonzero(~world.is_motion)
    inside, outside, other = [], [], []
    for label in looks:
        videos = {f"v{label}-{i}": (30.0, [(int(label), 10.0, 20.0)]) for i in range(10)}
        split = invented_split(toy_split, videos)
        for video_id in videos:
            features = frame_features(split, video_id)
            centred = features - features.mean(0)
            scores = centred @ world.prototypes[label]
            inside.append(scores[20:40].mean())
            outside.append(np.r_[scores[:20], scores[40:]].mean())
            stranger = looks[(list(looks).index(label) + 1) % len(looks)]
            other.append((centred @ world.prototypes[stranger])[20:40].mean())
    assert min(inside) > 0 > max(outside)
    assert np.mean(inside) > 3 * np.abs(np.mean(other))


def test_classes_that_move_are_not_in_the_mean_but_in_the_differences(toy_split, all_shown):
    world = draw_structure(12, 256)
    label = int(np.flatnonzero(world.is_motion)[0])
    pattern = world.patterns[label]
    means, moves = [], []
    for i in range(60):
        split = invented_split(toy_split, {f"v{i}": (30.0, [(label, 10.0, 20.0)])})
        features = frame_features(split, f"v{i}")
        means.append((features[20:40].mean(0) - np.r_[features[:20], features[40:]].mean(0)) @ pattern)
        turns = np.where(np.arange(59) % 2, -1.0, 1.0)
        along = np.abs((np.diff(features, axis=0) @ pattern) * turns)
        moves.append(along[20:39].mean() / np.r_[along[:19], along[40:]].mean())
    # The mean's deviation is noise: within three standard errors of nothing. The differences stand out each time.
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(len(means))
    assert min(moves) > 2


def test_related_classes_are_near():
    world = draw_structure(157, 256)
    unit = world.prototypes / np.linalg.norm(world.prototypes, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(157, 1)]
    # Independent vectors in 256 dimensions would stay within 0.33 of a right angle at 5.2 standard deviations.
    assert (cosines > 0.35).mean() > 0.02 and np.abs(np.median(cosines)) < 0.1
    assert 0.8 < np.sqrt((world.prototypes**2).mean()) < 1.2
    assert world.is_motion.sum() == round(0.2 * 157)
    assert not world.patterns[~world.is_motion].any() and world.patterns[world.is_motion].all()


def test_noise_remembers(toy_split, monkeypatch):
    monkeypatch.setattr(simulation, "BASE", 100.0)  # so that nothing is cut off at zero
    simulation.draw_structure.cache_clear()
    split = invented_split(toy_split, {"v": (30.0, [])})
    features = frame_features(split, "v", frames=2000).astype(np.float64)
    simulation.draw_structure.cache_clear()
    centred = features - features.mean(0)
    assert np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2) == pytest.approx(simulation.NOISE_MEMORY, abs=0.02)
    assert np.sqrt(np.mean(centred**2)) == pytest.approx(simulation.NOISE, rel=0.05)


def means(split, subset, **arguments):
    return np.array([frame_features(split, name, **arguments).mean(0) for name in split.video_ids(subset)])


def test_a_linear_probe_ranks_better_the_easier_it_is(toy_split):
    """On the classes that do not move; scikit-learn's logistic regression on the mean frame."""
    looks = np.flatnonzero(~draw_structure(12, 64).is_motion)
    train, test = toy_split.labels("train"), toy_split.labels("test")
    scores = []
    for difficulty in (0.0, 0.5, 3.0):
        arguments = {"dim": 64, "difficulty": difficulty}
        x, z = means(toy_split, "train", **arguments), means(toy_split, "test", **arguments)
        z, x = (z - x.mean(0)) / (x.std(0) + 1e-6), (x - x.mean(0)) / (x.std(0) + 1e-6)
        usable = [c for c in looks if train[:, c].sum() > 4 and test[:, c].any()]
        probes = [LogisticRegression(C=0.1, max_iter=200).fit(x, train[:, c]).decision_function(z) for c in usable]
        scores.append(
            np.mean([average_precision_score(test[:, c], probe) for c, probe in zip(usable, probes, strict=True)])
        )
    chance = test[:, usable].mean()
    assert scores[0] > scores[1] > scores[2]
    assert scores[0] > 0.85 and scores[1] > chance + 0.15 and scores[2] < chance + 0.15


@pytest.mark.parametrize(("difficulty", "low", "high"), [(0.0, 1.0, 1.0), (0.5, 0.25, 0.39), (1.0, 0.05, 0.15)])
def test_most_segments_do_not_show_by_default(toy_split, monkeypatch, difficulty, low, high):
    """Without scene and noise, a frame is the bare base unless a segment shows."""
    for name in ("SCENE_PLACES", "SCENE_OWN", "NOISE"):
        monkeypatch.setattr(simulation, name, 0.0)
    world = draw_structure(12, 16)
    label = int(np.flatnonzero(~world.is_motion)[0])
    videos = {f"v{i}": (30.0, [(label, 0.0, 30.0)]) for i in range(300)}
    split = invented_split(toy_split, videos)
    frames = [frame_features(split, name, frames=1, dim=16, difficulty=difficulty)[0] for name in videos]
    shown = np.mean([not np.array_equal(frame, world.base) for frame in frames])
    assert low <= shown <= high


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frames": 0}, FeatureError, "frames must be a whole number of at least 1, got 0"),
        ({"frames": 1.5}, FeatureError, "frames"),
        ({"dim": 0}, FeatureError, "dim"),
        ({"dim": [16]}, FeatureError, "dim"),
        ({"seed": -1}, FeatureError, "seed must be a whole number of at least 0"),
        ({"seed": "one"}, FeatureError, "seed"),
        ({"difficulty": -0.1}, FeatureError, "difficulty must be a number from 0 to 100"),
        ({"difficulty": float("nan")}, FeatureError, "difficulty"),
        ({"difficulty": "hard"}, FeatureError, "difficulty"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(toy_split, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        frame_features(toy_split, toy_split.video_ids("train")[0], **arguments)
    with pytest.raises(error, match=message):
        simulate_features(toy_split, tmp_path / "f.h5", **arguments)
    assert not list(tmp_path.iterdir())


def test_unknown_videos_subsets_and_unusable_ids_are_refused(toy_split, tmp_path):
    with pytest.raises(SplitError, match="no video 'nobody'"):
        frame_features(toy_split, "nobody")
    with pytest.raises(SplitError, match="unknown subset 'dev'"):
        simulate_features(toy_split, tmp_path / "f.h5", subset="dev")
    with pytest.raises(FeatureError, match=r"cannot name features in a file: '\.\./up'"):
        simulate_features(invented_split(toy_split, {"../up": (1.0, [])}), tmp_path / "f.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["charadeslt", "charadesegolt"])
def test_every_label_of_the_real_splits_shows_somewhere(name):
    """Some official segments end before they begin, or lie past the end of their video."""
    split = build_released(name, real_data(REAL[name]))
    generator = np.random.default_rng(0)
    for row in split.rows("test").to_pylist():
        moments = draw_appearances(row, 60, generator)
        assert {moment.label for moment in moments} == set(row["labels"])
        assert all(0 <= moment.first <= moment.last < 60 for moment in moments)


def test_simulated_features_cannot_be_extracted_again(toy_split, tmp_path, run):
    path = simulate_features(toy_split, tmp_path / "f.h5", **SMALL)
    (tmp_path / "videos").mkdir()
    outcome = run("verify-features", path, "--videos", tmp_path / "videos")
    assert outcome.exit_code == 1 and "Error: these features are simulated: there are no videos" in outcome.stderr
