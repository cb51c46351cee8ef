#!/usr/bin/env bash
# The newest version of every package, without constraints.txt, on the Python named: install, demo, extract a generated
# clip, evaluate, compare. `.ci/run` calls it for Python 3.13 and 3.12 where it finds them.
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Copied, so that the build leaves nothing in the clone and the installed package is the one that runs.
mkdir "$work/source"
cp -r meidbench baselines splits setup.cfg pyproject.toml README.md LICENSE NOTICE "$work/source"
cp -r tests "$work/tests"
cd "$work"
"$python" -m venv venv
venv/bin/pip install -qq --upgrade --no-compile ./source
PATH="$work/venv/bin:$PATH"

python - <<'CHECK'
import platform
from importlib.metadata import version

import av

names = ["av", "numpy", "pandas", "pyarrow", "scipy", "h5py", "pillow", "click", "torch"]
print("python", platform.python_version(), *(f"{name} {version(name)}" for name in names))
assert int(av.__version__.split(".")[0]) >= 19, f"PyAV {av.__version__} is not the newest"
CHECK
meidbench demo --out demo-out > demo.txt 2>&1 || { cat demo.txt; exit 1; }
mkdir clips
python - <<'CLIP'
import sys
from pathlib import Path

sys.path.insert(0, "tests")
from make_videos import pictures, write_video

write_video(Path("clips/a.mp4"), pictures(30))
write_video(Path("clips/b.avi"), pictures(30), title="B")
CLIP
meidbench extract-features clips --out clips.h5 --backbone resnet50 --weights random --seed 0 --frames 4
meidbench verify-features clips.h5 --videos clips --weights random --weights-seed 0 --sample 2 > verified.txt
meidbench build-splits tests/toy/toylt.toml --annotations tests/toy --out . > /dev/null
meidbench evaluate tests/toy/predictions.npz --split toylt.parquet
meidbench compare a=tests/toy/predictions.npz b=tests/toy/predictions.npz --split toylt.parquet --bootstrap 9 > compared.txt
