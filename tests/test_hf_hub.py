"""Models by name: fetched from a server that answers as the hub, pinned, and found again without it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hf_hub
import hf_models
import pytest
import torch
import transformers

from meidbench.extraction.encoders.encoder import load_encoder
from meidbench.features.feature_file import read_header

# The library reads its settings when it is imported.
SCRIPT = """
import json, sys
from meidbench.errors import FeatureError
from meidbench.extraction.encoders.encoder import load_encoder, load_text_encoder
from meidbench.extraction.encoders.hub import find_hub_file
for name in sys.argv[1:]:
    kind, _, name = name.partition(" ")
    try:
        if kind == "text":
            answer = {"revision": load_text_encoder(name).revision}
        elif kind == "file":
            found = find_hub_file("timm:hf-hub:", name, ["model.safetensors", "pytorch_model.bin"])
            answer = {"revision": found.commit, "file": found.path.name, "size": found.path.stat().st_size}
        else:
            encoder = load_encoder(name, offline=kind == "offline")
            answer = {"name": encoder.name, "revision": encoder.revision, "sha256": encoder.weights.sha256}
    except FeatureError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
"""


def ask(environment, *names):
    command = [sys.executable, "-c", SCRIPT, *names]
    outcome = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert outcome.stderr == ""
    return [json.loads(line) for line in outcome.stdout.splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of two revisions, one with pickled weights alone, one without weights, and a gated one."""
    folder = tmp_path_factory.mktemp("hub")
    model = hf_models.write_clip(folder / "first")
    shutil.copytree(folder / "first", folder / "second")
    with torch.no_grad():
        model.visual_projection.weight += 1
    model.save_pretrained(folder / "second")
    (folder / "second" / "onnx").mkdir()
    shutil.copytree(folder / "first", folder / "pickled")
    state = transformers.CLIPModel.from_pretrained(folder / "first").state_dict()
    torch.save(state, folder / "pickled" / "pytorch_model.bin")
    (folder / "pickled" / "model.safetensors").unlink()
    shutil.copytree(folder / "first", folder / "bare")
    (folder / "bare" / "model.safetensors").unlink()
    # These are published beside the weights, and nobody needs them here.
    (folder / "second" / "flax_model.msgpack").write_bytes(b"0")
    (folder / "second" / "pytorch_model.bin").write_bytes(b"0")
    return {
        "acme/clip": {"main": folder / "second", "v1": folder / "first"},
        "acme/pickled": {"main": folder / "pickled"},
        "acme/bare": {"main": folder / "bare"},
        "acme/gated": {},
        "acme/other": {"main": folder / "first"},
    }


def test_models_are_fetched_pinned_and_found_again_offline(models, tmp_path):
    clip = models["acme/clip"]
    commits = {revision: hf_hub.commit_of(folder) for revision, folder in clip.items()}
    expected = {revision: load_encoder(f"hf:{folder}").weights.sha256 for revision, folder in clip.items()}
    with hf_hub.serve(models) as (address, requests):
        here = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        main, first, pickled, bare, gated, unknown, revision = ask(
            here, "image hf:acme/clip", "image hf:acme/clip@v1", "image hf:acme/pickled", "image hf:acme/bare",
            "image hf:acme/gated", "image hf:acme/unknown", "image hf:acme/clip@v9",
        )  # fmt: skip
        fetched = [request.rpartition("/")[2] for request in requests if request.startswith("GET acme/clip/")]
    assert main == {"name": "hf:acme/clip", "revision": commits["main"], "sha256": expected["main"]}
    assert first == {"name": "hf:acme/clip", "revision": commits["v1"], "sha256": expected["v1"]}
    assert expected["main"] != expected["v1"] == pickled["sha256"]
    assert "model.safetensors" in fetched and not {"flax_model.msgpack", "pytorch_model.bin"} & set(fetched)
    assert "holds no weights" in bare["error"]
    assert gated["error"].startswith(
        "hf:acme/gated is gated: only users who accepted its conditions can fetch it\n  remedy: "
    )
    assert unknown["error"].startswith("hf:acme/unknown is not on the hub, or it is private\n  remedy: check the name")
    assert revision["error"].startswith("hf:acme/clip@v9 is not on the hub: the model has no such revision")

    # The server is gone: what the cache holds serves, with and without the library's switch.
    away = (
        "is not complete in the hub's cache, and the hub cannot be reached (no network, or offline)\n"
        "  remedy: check the name; run "
    )
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        names = ("image hf:acme/clip", "image hf:acme/clip@v1", f"image hf:acme/clip@{commits['v1']}")
        answers = ask({**here, **offline}, *names, "text hf:acme/clip", "offline hf:acme/clip", "image hf:acme/other")
        assert answers[:3] == [main, first, first] and answers[3]["revision"] == commits["main"]
        assert answers[4] == main
        assert answers[5]["error"].startswith(f"hf:acme/other {away}'hf download acme/other' where there is a network")
    # A cache that lost the weights.
    for path in Path(tmp_path, "home").rglob("snapshots/*/model.safetensors"):
        path.unlink()
    (lost,) = ask({**here, "HF_HUB_OFFLINE": "1"}, "image hf:acme/clip@v1")
    assert lost["error"].startswith(f"hf:acme/clip@v1 {away}'hf download acme/clip --revision v1'")


def test_files_of_the_hub_are_found_or_missing_for_a_reason(models, tmp_path):
    names = ("clip@v1", "pickled", "bare", "gated", "unknown", "clip@v9", "other")
    weights = {"first": models["acme/clip"]["v1"] / "model.safetensors"}
    weights["pickled"] = models["acme/pickled"]["main"] / "pytorch_model.bin"
    sizes = {name: path.stat().st_size for name, path in weights.items()}
    with hf_hub.serve(models) as (address, _):
        here = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        first, pickled, bare, gated, unknown, revision = ask(here, *(f"file acme/{name}" for name in names[:-1]))
    commit = hf_hub.commit_of(models["acme/clip"]["v1"])
    assert first == {"revision": commit, "file": "model.safetensors", "size": sizes["first"]}
    assert (pickled["file"], pickled["size"]) == ("pytorch_model.bin", sizes["pickled"])
    said = {"bare": bare, "gated": gated, "unknown": unknown, "clip@v9": revision}
    reasons = ("@{} has no model.safetensors or pytorch_model.bin", " is gated", " is not on the hub, or", " is not on")
    for (name, answer), reason in zip(said.items(), reasons, strict=True):
        reason = reason.format(hf_hub.commit_of(models["acme/bare"]["main"]))
        assert answer["error"].startswith(f"timm:hf-hub:acme/{name}{reason}") and "\n  remedy: " in answer["error"]
    answers = ask(here, "file acme/clip@v1", "file acme/pickled", "file acme/other")
    assert answers[:2] == [first, pickled]
    assert "not complete in the hub's cache" in answers[2]["error"] and "timm:FOLDER" in answers[2]["error"]


def test_the_recipe_pins_the_commit(models, tmp_path):
    """The main branch has moved on when the features are verified: the commit of the file is taken."""
    from make_videos import pictures, write_video

    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", pictures(5))
    out = str(tmp_path / "f.h5")
    command = [sys.executable, "-m", "meidbench"]
    clip = models["acme/clip"]
    with hf_hub.serve(models) as (address, _):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        extract = ["extract-features", "videos", "--out", out, "--backbone", "hf:acme/clip@v1", "--frames", "2"]
        subprocess.run([*command, *extract], env=environment, cwd=tmp_path, check=True, capture_output=True)
    recipe = read_header(Path(out)).recipe
    assert (recipe["backbone"], recipe["revision"]) == ("hf:acme/clip", hf_hub.commit_of(clip["v1"]))
    with hf_hub.serve({"acme/clip": {"main": clip["main"], "old": clip["v1"]}}) as (address, _):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "another home")}
        verify = ["verify-features", out, "--videos", "videos"]
        outcome = subprocess.run([*command, *verify], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
