"""From clips to scores by a small random CLIP: extract-features, zero-shot, text_adapter, predict, evaluate."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from click.testing import CliRunner
from hf_models import write_clip
from make_videos import pictures, write_video

from meidbench.annotations.tables import split_from_pandas
from meidbench.baselines.class_text import default_templates, read_class_text
from meidbench.cli import main
from meidbench.features import open_features
from meidbench.predictions.align import align_predictions, read_predictions
from meidbench.splits.split import write_split

# Invented, in the forms of the benchmarks; and as they stand in prompts.
NAMES = ("Opening_a_kite/s", "foldingAToyBoat", "Someone is juggling")
WORDS = ("opening a kite", "folding a toy boat", "juggling")


def make_clips(folder):
    """Twelve clips, and their split."""
    folder.mkdir()
    rows = []
    for number in range(12):
        write_video(folder / f"clip{number}.mp4", pictures(8, seed=number) // (1 + number % 3))
        subset = ("train", "train", "val", "test")[number % 4]
        rows.append((f"clip{number}", subset, [NAMES[number % 3], *([NAMES[2]] if number in (9, 10) else [])]))
    frame = pd.DataFrame(rows, columns=["video_id", "subset", "labels"])
    return split_from_pandas(frame, dataset="clips", head_above=3, tail_up_to=2, class_names=NAMES)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, its features of some clips, and their split; and the plain model of transformers."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    model = write_clip(folder / "clip").eval()
    split = make_clips(folder / "videos")
    write_split(split, folder / "split.parquet")
    run("extract-features", folder / "videos", "--out", folder / "f.h5", "--backbone", f"hf:{folder / 'clip'}",
        "--frames", 6, "--device", "cpu", "--workers", 1)  # fmt: skip
    return folder, split, model


def run(*arguments):
    outcome = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome


def plain_text_vectors(folder, model):
    """The ensemble of prompts in a plain script."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "clip")
    vectors = []
    for words in WORDS:
        units = []
        for template in default_templates():
            tokens = tokenizer([template.format(words)], truncation=True, max_length=16, return_tensors="pt")
            with torch.no_grad():
                hidden = model.text_model(**tokens).pooler_output
                vector = model.text_projection(hidden)[0].double()
            units.append(vector / vector.norm())
        mean = torch.stack(units).mean(dim=0)
        vectors.append(mean / mean.norm())
    return torch.stack(vectors).numpy()


def test_zero_shot_is_that_of_a_plain_script_from_clips_to_logits(world, tmp_path):
    folder, split, model = world
    common = ("--features", folder / "f.h5", "--split", folder / "split.parquet")
    outcome = run("zero-shot", *common, "--out", tmp_path / "zero.parquet", "--save-text", tmp_path / "t.npz", "--json")
    text, plain = read_class_text(tmp_path / "t.npz"), plain_text_vectors(folder, model)
    np.testing.assert_allclose(text.vectors, plain, atol=1e-5)
    assert text.scale == pytest.approx(float(model.logit_scale.exp().detach())) and text.bias == 0
    assert text.encoder == f"hf:{folder / 'clip'}" and json.loads(outcome.stdout)["text_digest"] == text.digest
    rows = np.stack([open_features(folder / "f.h5").read(video) for video in split.video_ids("test")]).astype(float)
    units = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    scores = align_predictions(read_predictions(tmp_path / "zero.parquet"), split, "test")
    np.testing.assert_allclose(scores, text.scale * (units @ plain.T).mean(axis=1), atol=1e-3)


def test_text_adapter_trains_predicts_and_is_scored(world, tmp_path):
    folder = world[0]
    common = ("--features", folder / "f.h5", "--split", folder / "split.parquet")
    tiny = ("--epochs", 2, "--set", "schedule.batch_size=4", "--device", "cpu")
    run("train", *common, "--method", "text_adapter", "--out", tmp_path / "run", *tiny)
    run("predict", tmp_path / "run", "--subset", "test", "--out", tmp_path / "p.parquet", "--device", "cpu")
    assert (tmp_path / "p.parquet").read_bytes() == (tmp_path / "run" / "predictions-test.parquet").read_bytes()
    run("zero-shot", *common, "--out", tmp_path / "zero.parquet", "--save-text", tmp_path / "t.npz")
    digest = read_class_text(tmp_path / "t.npz").digest
    assert read_predictions(tmp_path / "p.parquet").metadata["run"]["text_digest"] == digest
    outcome = run("compare", f"zero={tmp_path / 'zero.parquet'}", f"adapter={tmp_path / 'p.parquet'}", "--split",
                  folder / "split.parquet", "--bootstrap", 50, "--json", "-")  # fmt: skip
    assert [method["name"] for method in json.loads(outcome.stdout)["methods"]] == ["zero", "adapter"]
