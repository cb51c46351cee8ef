"""Weights from files of every kind, good and bad, from a server on this machine, and from a seed."""

import hashlib
import io
import json
import os
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import torch
from material import LocalServer
from torch import nn

from meidbench.errors import DownloadError, FeatureError, RequestError
from meidbench.extraction.encoders.backbones import BACKBONES, Backbone, Bottleneck, build
from meidbench.extraction.encoders.weights import (
    LoadedWeights,
    TorchFileError,
    load_torch_file,
    load_weights,
    read_checkpoint,
)
from meidbench.splits.manifests import Download

FORMS = ["zip", "former", "safetensors"]


class SmallNet(nn.Module):
    """The first layers of a narrow ResNet."""

    def __init__(self, clip=1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Bottleneck(64, 16, 1, clip))
        self.layer2 = nn.Sequential(Bottleneck(64, 8, 2, clip))


SMALL = Backbone("small", SmallNet)
SMALL_TSM = Backbone("small-tsm", partial(SmallNet, 8), clip=8)


@pytest.fixture(scope="module")
def good():
    """The state dict of a network whose numbers all differ from those of another seed."""
    model = SmallNet()
    load_weights(model, SMALL, "random", seed=5)
    return model.state_dict()


def fresh(backbone=SMALL):
    model = backbone.make_network()
    for value in model.state_dict().values():
        value.zero_()
    return model.eval().requires_grad_(False)


def write(path, content, form="zip"):
    if form == "safetensors":
        torch_form = pytest.importorskip("safetensors.torch", reason="an optional dependency")
        torch_form.save_file(dict(content), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def same(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def refusal(spec, backbone=SMALL, model=None, error=FeatureError, **options):
    """Load weights that must be refused; the model must not change. Return the message."""
    model = model or fresh(backbone)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error) as caught:
        load_weights(model, backbone, spec, **options)
    assert same(model, before)
    return str(caught.value)


# --- files ---


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_content_tells_the_form(tmp_path, good, form, name):
    path = write(tmp_path / name, good, form)
    model = fresh()
    facts = load_weights(model, SMALL, path)
    assert same(model, good)
    assert (facts.name, facts.source) == (name, "file")
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefixes_come_off(tmp_path, good, wrapper):
    state = OrderedDict((f"module.{key}", value) for key, value in good.items())
    path = write(tmp_path / "w.pth", {wrapper: state, "epoch": 90, "arch": "resnet", "best": torch.tensor(77.4)})
    model = fresh()
    load_weights(model, SMALL, str(path))
    assert same(model, good)


def test_classifier_and_counts_need_not_be_right(tmp_path, good):
    state = {key: value for key, value in good.items() if not key.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.full((7, 2048), torch.nan), "fc.bias": torch.ones(7)}
    model = fresh()
    load_weights(model, SMALL, write(tmp_path / "w.pth", state))
    assert same(model, good)


def test_published_form_of_tsm_is_taken(tmp_path):
    """Keys as in the checkpoints of the authors: DataParallel around a net that holds the base model."""
    wanted = fresh(SMALL_TSM)
    load_weights(wanted, SMALL_TSM, "random", seed=2)
    state = {f"module.base_model.{key}": value for key, value in wanted.state_dict().items()}
    assert "module.base_model.layer1.0.conv1.net.weight" in state
    state |= {"module.new_fc.weight": torch.ones(400, 2048), "module.new_fc.bias": torch.ones(400)}
    path = write(tmp_path / "w.pth", {"epoch": 50, "state_dict": state}, "former")
    model = fresh(SMALL_TSM)
    load_weights(model, SMALL_TSM, path)
    assert same(model, wanted.state_dict())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(tmp_path, good, form, dtype):
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in good.items()}
    model = fresh()
    load_weights(model, SMALL, write(tmp_path / "w", stored, form))
    assert all(value.dtype == torch.float32 for key, value in model.state_dict().items() if "num_" not in key)
    assert same(model, {key: value.float() for key, value in stored.items()})


# --- files that do not fit ---


def test_missing_unknown_and_misshapen_are_all_named(tmp_path, good):
    state = dict(good)
    gone = [key for key in state if key.startswith("layer1") and "num_" not in key]
    for key in gone:
        del state[key]
    state["extra.weight"] = torch.ones(2)
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["bn1.bias"] = state["bn1.bias"].int()
    message = refusal(write(tmp_path / "w.pth", state))
    assert f"missing: {', '.join(gone[:5])} and {len(gone) - 5} more" in message
    assert "not expected: extra.weight" in message
    assert "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)" in message
    assert "bn1.bias torch.int32" in message
    assert "looks like" not in message


def test_file_of_another_backbone_is_recognised(tmp_path):
    with torch.device("meta"):
        shapes = BACKBONES["tsm-resnet50"].make_network().state_dict()
    # Each tensor is expanded from one number, so that the file is small.
    state = {f"module.base_model.{key}": torch.zeros(()).expand(value.shape) for key, value in shapes.items()}
    message = refusal(write(tmp_path / "w.pth", state))
    assert "it looks like tsm-resnet50" in message and "does not hold weights for small" in message


def test_network_without_shifts_is_not_taken_for_one_with_them(tmp_path, good):
    assert "layer1.0.conv1.net.weight" in refusal(write(tmp_path / "w.pth", good), SMALL_TSM)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_are_refused(tmp_path, good, value):
    state = {key: tensor.clone() for key, tensor in good.items()}
    state["layer2.0.conv2.weight"][3, 2, 1, 0] = value
    assert "NaN or infinity in layer2.0.conv2.weight" in refusal(write(tmp_path / "w.pth", state))


def test_half_that_overflows_is_refused(tmp_path, good):
    state = dict(good, **{"bn1.running_mean": torch.full((64,), 1e300, dtype=torch.float64)})
    assert "infinity in bn1.running_mean" in refusal(write(tmp_path / "w.pth", state))


def test_negative_variance_is_refused(tmp_path, good):
    state = dict(good, **{"bn1.running_var": torch.full((64,), -1.0)})
    assert "negative variances in bn1.running_var" in refusal(write(tmp_path / "w.pth", state))


def test_same_weight_twice_is_refused(tmp_path, good):
    state = dict(good, **{"module.bn1.bias": good["bn1.bias"]})
    assert "not expected: module.bn1.bias" in refusal(write(tmp_path / "w.pth", state))
    state = dict(good, **{"conv1.conv.weight": good["conv1.weight"]})
    assert "holds some weights twice: conv1.conv.weight" in refusal(write(tmp_path / "w.pth", state))


# --- files without weights, and dangerous ones ---


class Trap:
    """Its unpickling creates folders."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "former", "pickle"])
def test_pickle_with_a_program_in_it_is_not_run(tmp_path, good, form):
    sprung, path = tmp_path / "sprung", tmp_path / "w.pth"
    content = {"state_dict": dict(good), "trap": Trap(sprung)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["trap"]))
    else:
        write(path, content, form)
    message = refusal(path)
    assert not sprung.exists()
    if form == "pickle":
        assert "damaged" in message
    else:
        assert "run a program hidden in it" in message and "mkdir" in message
    assert "weights_only" not in message
    if form == "zip":  # the trap works
        torch.load(path, weights_only=False)
        assert sprung.exists()


def test_tar_and_torchscript_never_reach_torch(tmp_path, good, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch was asked to read it"))
    tar = tmp_path / "w.tar"
    with tarfile.open(tar, "w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert "tar archive" in refusal(tar)
    script = tmp_path / "w.pt"

    with zipfile.ZipFile(script, "w") as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/constants.pkl", b"")
    assert "TorchScript" in refusal(script)


@pytest.mark.parametrize("content, told", [
    (b"", "is empty"),
    (b"<!DOCTYPE html><html>404</html>", "web page"),
    (b'{"message": "rate limit"}', "web page or text"),
    (b"version https://git-lfs.github.com/spec/v1\n", "not a weight file"),
    (bytes(1000), "not a weight file"),
    (b"PK\x03\x04", "damaged or cut short"),
    (b"\x80\x02", "damaged or cut short"),
    (b"\x89HDF\r\n\x1a\n" + bytes(99), "not a weight file: 107 bytes, an HDF5 file"),
])  # fmt: skip
def test_other_files_are_told_apart(tmp_path, content, told):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    message = refusal(path)
    assert told in message and str(path) in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0001, 0.3, 0.999])
def test_cut_file_is_refused(tmp_path, good, form, share):
    path = write(tmp_path / "w.pth", good, form)
    content = path.read_bytes()
    path.write_bytes(content[: max(16, int(share * len(content)))])
    assert "damaged or cut short" in refusal(path)


@pytest.mark.parametrize(
    "header", [b"{", b"{}" + b" " * 6, b'{"a": 1}', b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}']
)
def test_damaged_safetensors_is_refused(tmp_path, header):
    pytest.importorskip("safetensors", reason="an optional dependency")
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged" in refusal(path) or "empty dict" in refusal(path)


def test_safetensors_without_its_package(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    header = json.dumps({}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert "pip install safetensors" in refusal(path)


def test_a_state_dict_under_another_name_gets_the_code_that_saves_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = refusal(write(tmp_path / "w.pth", {"net": {"conv1.weight": torch.ones(2)}, "acc": 91.2}))
    assert "entries that are not tensors: net, acc" in told
    exec(told.split("Save them:\n")[1].strip(), {})
    assert torch.load("weights.pt").keys() == {"conv1.weight"}


@pytest.mark.parametrize("content, told", [
    ([torch.ones(2)], "holds a list"),
    (torch.ones(2), "holds a Tensor"),
    ({}, "an empty dict"),
    ({"epoch": 3, "conv1.weight": torch.ones(2)}, "not tensors: epoch"),
    ({"state_dict": {"a": {"b": torch.ones(2)}}}, "not tensors: a"),
])  # fmt: skip
def test_other_content_is_refused(tmp_path, content, told):
    assert told in refusal(write(tmp_path / "w.pth", content))


def test_folder_and_unreadable_file(tmp_path):
    assert "cannot read" in refusal(tmp_path)
    message = refusal(tmp_path / "nothing.pth", error=RequestError)
    assert "not a file" in message and "resnet101-imagenet-v1" in message


def test_checkpoint_needs_no_gpu_and_shares_no_gradients(tmp_path):
    path = write(tmp_path / "w.pth", {"a": torch.nn.Parameter(torch.ones(2))})
    state = read_checkpoint(path).state
    assert not state["a"].requires_grad and state["a"].device.type == "cpu"


# --- random ---


def test_seed_alone_decides():
    first, second, other = fresh(), fresh(), fresh()
    told = []
    torch.manual_seed(1)
    facts = load_weights(first, SMALL, "random", seed=3, report=told.append)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert load_weights(second, SMALL, "random", seed=3) == facts
    assert torch.equal(torch.get_rng_state(), before)
    assert load_weights(other, SMALL, "random", seed=4).sha256 != facts.sha256
    assert same(first, second.state_dict()) and not same(other, first.state_dict())
    assert (facts.name, facts.source) == ("random", "random, seed 3")
    assert len(told) == 1 and "RANDOM" in told[0] and "seed 3" in told[0]


def test_digest_of_random_weights_is_that_of_their_bytes():
    model = fresh()
    facts = load_weights(model, SMALL, "random", seed=3)
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        array = value.numpy()
        kind = {np.dtype(np.float32): "torch.float32", np.dtype(np.int64): "torch.int64"}[array.dtype]
        digest.update(f"{key} {kind} {array.shape}\n".encode() + array.tobytes())
    assert facts.sha256 == digest.hexdigest()


def test_random_weights_keep_numbers_moderate():
    model = build("resnet50")
    load_weights(model, BACKBONES["resnet50"], "random", seed=0)
    rows = model(torch.randn((2, 3, 32, 32), generator=torch.Generator().manual_seed(1)))
    assert 0.05 < rows.std() < 50 and rows.max() < 1000
    assert (rows[0] - rows[1]).abs().mean() > 0.01


def test_random_weights_need_a_seed():
    assert "--seed" in refusal("random")


# --- published ---


def test_published_weights_are_those_of_torchvision():
    published = {name: entry for backbone in BACKBONES.values() for name, entry in backbone.weights.items()}
    assert {name: entry.url.rpartition("/")[2] for name, entry in published.items()} == {
        "resnet101-imagenet-v1": "resnet101-63fe2227.pth",
        "resnet101-imagenet-v2": "resnet101-cd907fc2.pth",
        "resnet50-imagenet-v1": "resnet50-0676ba61.pth",
        "resnet50-imagenet-v2": "resnet50-11ad3fa6.pth",
    }
    for name, backbone in BACKBONES.items():
        for entry in backbone.weights.values():
            assert entry.url.startswith("https://") and f"-{entry.sha256}." in entry.url and name in entry.url
        assert next(iter(backbone.weights), None) == (None if backbone.clip > 1 else f"{name}-imagenet-v1")


class Site(LocalServer):
    """A server with one file."""

    def __init__(self, body):
        self.asked = asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(Handler)


@pytest.fixture
def offered(tmp_path, good, monkeypatch):
    """Publish the good weights on a local server; return the backbone, the server, the address and the digest."""
    body = write(tmp_path / "source.pth", good).read_bytes()
    site = Site(body)
    digest = hashlib.sha256(body).hexdigest()
    url = f"{site.url}/small-{digest[:8]}.pth"
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield replace(SMALL, weights={"small-v1": Download(url, None, digest[:8])}), site, url, digest
    site.close()


@pytest.mark.parametrize("spec", ["default", "small-v1"])
def test_published_weights_are_fetched_once(offered, good, spec, tmp_path):
    backbone, site, url, digest = offered
    model = fresh()
    counts = []
    facts = load_weights(model, backbone, spec, progress=lambda *count: counts.append(count))
    assert same(model, good)
    assert facts == LoadedWeights("small-v1", digest, url)
    kept = tmp_path / "home" / "weights" / f"small-{digest[:8]}.pth"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    size = kept.stat().st_size
    assert counts[-1] == (kept.name, size, size) and {total for _, _, total in counts} == {size}
    again = load_weights(fresh(), backbone, spec)
    assert again == facts == load_weights(fresh(), backbone, spec, offline=True)
    assert len(site.asked) == 1


def test_offline_says_what_to_put_where(offered, tmp_path):
    backbone, site, url, digest = offered
    message = refusal("default", backbone, offline=True)
    kept = tmp_path / "home" / "weights" / f"small-{digest[:8]}.pth"
    assert str(kept) in message and url in message and "is not there" in message
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"<html>")
    assert "is another file" in refusal("default", backbone, offline=True)
    assert site.asked == []


def test_other_file_under_the_address_is_refused(offered, tmp_path):
    backbone, _, url, _ = offered
    backbone = replace(backbone, weights={"small-v1": Download(url, None, "0123abcd")})
    with pytest.raises(
        DownloadError, match=r"(?s)expected: sha256 beginning with 0123abcd.*got: sha256 .*kept: nothing"
    ):
        load_weights(fresh(), backbone, "default")
    assert list((tmp_path / "home" / "weights").iterdir()) == []


def test_weights_of_another_backbone_are_not_even_fetched(offered):
    backbone, site, _, _ = offered
    message = refusal("resnet101-imagenet-v1", backbone)
    assert "are for resnet101, not for small" in message and "small-v1" in message
    assert site.asked == []


def test_backbone_without_default_weights_says_so():
    message = refusal("default", BACKBONES["tsm-resnet50"], model=fresh())
    assert "no default weights for tsm-resnet50" in message and "--weights FILE" in message


def test_a_tar_archive_with_the_first_byte_of_a_pickle_never_reaches_torch(tmp_path, monkeypatch):
    member = tmp_path / "storages"
    member.write_bytes(b"content")
    with tarfile.open(tmp_path / "w.pth", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.add(member, arcname="\x80storages")
    assert (tmp_path / "w.pth").read_bytes().startswith(b"\x80")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch saw it"))
    assert "is a tar archive" in refusal(tmp_path / "w.pth")


def test_tensors_that_are_sparse_are_refused(tmp_path, good):
    state = {**good, "conv1.weight": good["conv1.weight"].to_sparse()}
    torch.save(state, tmp_path / "w.pth")
    assert "sparse, quantised or without data: conv1.weight" in refusal(tmp_path / "w.pth")


# --- bits that changed, and numbers that are not there ---


def archive_of(tmp_path, content):
    raw = write(tmp_path / "archive.pt", content).read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return bytearray(raw), archive.infolist()


def test_a_changed_bit_in_any_member_is_refused_and_the_member_named(tmp_path, good):
    raw, members = archive_of(tmp_path, {"conv1.weight": good["conv1.weight"], "bn1.bias": good["bn1.bias"]})
    assert {"data.pkl", "0", "1", "version", "byteorder"} <= {entry.filename.rpartition("/")[2] for entry in members}
    path = tmp_path / "changed.pt"
    for entry in members:
        names_and_extra = struct.unpack("<HH", raw[entry.header_offset + 26 : entry.header_offset + 30])
        last = entry.header_offset + 30 + sum(names_and_extra) + entry.file_size - 1
        changed = bytearray(raw)
        changed[last] ^= 0x80  # the sign of a little-endian number
        path.write_bytes(changed)
        message = refusal(path)
        assert "damaged" in message and entry.filename in message and "get the file again" in message


def test_a_changed_bit_anywhere_is_refused_or_changes_no_number(tmp_path):
    content = {"a": torch.arange(6.0), "b": torch.ones(2, 3), "epoch": 3}
    raw, _ = archive_of(tmp_path, content)
    generator, refused = np.random.default_rng(0), 0
    for place, bit in zip(generator.integers(len(raw), size=400), generator.integers(8, size=400), strict=True):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(bit)
        try:
            told = load_torch_file(io.BytesIO(changed))
        except TorchFileError:
            refused += 1
            continue
        assert told.keys() == content.keys() and told["epoch"] == 3, (place, bit)
        assert all(torch.equal(told[name], content[name]) for name in "ab"), (place, bit)
    assert refused > 200


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch writes all checksums")
def test_an_archive_without_checksums_is_read(tmp_path, good):
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "w.pth", good)
    finally:
        torch.serialization.set_crc32_options(True)
    model = fresh()
    assert load_weights(model, SMALL, path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(model, good)


def test_a_packed_archive_is_refused(tmp_path, good):
    raw, members = archive_of(tmp_path, good)
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in members:
            packed.writestr(entry.filename, archive.read(entry))
    assert "does not compress" in refusal(path)


@pytest.mark.parametrize("form", ["zip", "former"])
def test_a_number_repeated_beyond_all_memory_is_refused_by_its_name(tmp_path, good, form):
    huge = torch.ones((), dtype=torch.float16).expand(10**12)
    assert "not expected: zz" in refusal(write(tmp_path / "w.pth", {"zz": huge}, form))
    assert "conv1.weight (1000000000000,)" in refusal(write(tmp_path / "w.pth", {**good, "conv1.weight": huge}, form))


def test_a_tensor_that_announces_more_bytes_than_the_file_has_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "w.pth", {"a": torch.ones(100)})

    def announce(file, map_location, weights_only):  # as in torch before it compared the sizes itself
        return map_location(torch.UntypedStorage(4_000_000), "cpu")

    monkeypatch.setattr(torch, "load", announce)
    assert "announces a tensor of 4,000,000 bytes" in refusal(path)


def test_complex_numbers_are_refused(tmp_path, good):
    state = {**good, "conv1.weight": good["conv1.weight"].to(torch.complex64)}
    message = refusal(write(tmp_path / "w.pth", state))
    assert "of another type: conv1.weight torch.complex64" in message


@pytest.mark.parametrize("counter", [
    torch.tensor(3.0).half(), torch.tensor(3), torch.tensor([3]), torch.tensor(1j), torch.ones(()).expand(10**12),
])  # fmt: skip
def test_counters_without_effect_are_no_reason_to_refuse(tmp_path, good, counter):
    state = {key: counter if key.endswith("num_batches_tracked") else value for key, value in good.items()}
    model = fresh()
    load_weights(model, SMALL, write(tmp_path / "w.pth", state))
    found = model.state_dict()
    assert all(torch.equal(found[key], good[key]) for key in good if not key.endswith("num_batches_tracked"))
    assert found["bn1.num_batches_tracked"].dtype == torch.int64


# --- networks within others ---


def nested(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def as_mmaction2(state):
    """Keys as mmaction2 writes them: each convolution wrapped with its normalisation."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"\bconv(\d)\.", r"conv\1.conv.", key)
        key = re.sub(r"\bbn(\d)\.", r"conv\1.bn.", key)
        renamed[key.replace("downsample.0.", "downsample.conv.").replace("downsample.1.", "downsample.bn.")] = value
    return nested(renamed, "backbone.")


FC = {"fc.weight": torch.ones(9, 9), "fc.bias": torch.ones(9)}
FOREIGN = {
    "DataParallel": lambda state: {"epoch": 90, "arch": "resnet50", "state_dict": nested({**state, **FC}, "module.")},
    "MoCo": lambda state: {
        "epoch": 200, "arch": "resnet50", "optimizer": {"state": {}, "param_groups": [{"lr": 0.03}]},
        "state_dict": {
            **nested({**state, "fc.0.weight": torch.ones(9, 9), "fc.2.bias": torch.ones(9)}, "module.encoder_q."),
            "module.queue": torch.ones(9, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.int64),
        },
    },
    "mmaction2": lambda state: {
        "meta": {"mmaction_version": "1.2.0", "epoch": 100},
        "state_dict": {**as_mmaction2(state), "cls_head.fc_cls.weight": torch.ones(400, 9)},
    },
    "Lightning": lambda state: {
        "epoch": 3, "global_step": 1000, "pytorch-lightning_version": "2.4.0", "callbacks": {}, "lr_schedulers": [],
        "state_dict": {**nested({**state, **FC}, "model."), "criterion.weight": torch.ones(3)},
    },
    "a module of the user": lambda state: nested(state, "resnet."),
}  # fmt: skip
PREFIXES = {
    "DataParallel": "module.", "MoCo": "module.encoder_q.", "mmaction2": "backbone.", "Lightning": "model.",
    "a module of the user": "resnet.",
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "former"])
@pytest.mark.parametrize("writer", FOREIGN)
def test_a_network_under_one_prefix_is_read_and_the_prefix_told(tmp_path, good, writer, form):
    path, told = write(tmp_path / "w.pth", FOREIGN[writer](good), form), []
    model = fresh()
    facts = load_weights(model, SMALL, path, report=told.append)
    assert same(model, good)
    others = {
        "MoCo": "; left out: module.queue, module.queue_ptr", "Lightning": "; left out: criterion.weight",
        "mmaction2": "; left out: cls_head.fc_cls.weight",
    }.get(writer, "")  # fmt: skip
    assert told == [f"w.pth: the weights under {PREFIXES[writer]!r} are read as those of small{others}"]
    assert facts.source == f"file, under {PREFIXES[writer]!r}"


def test_the_shifts_of_tsm_in_mmaction2_are_read(tmp_path):
    wanted = fresh(SMALL_TSM)
    load_weights(wanted, SMALL_TSM, "random", seed=2)
    state = as_mmaction2(wanted.state_dict())
    assert "backbone.layer1.0.conv1.conv.net.weight" in state
    model = fresh(SMALL_TSM)
    load_weights(model, SMALL_TSM, write(tmp_path / "w.pth", {"state_dict": state}))
    assert same(model, wanted.state_dict())


def test_several_networks_are_refused_and_the_remedy_takes_one(tmp_path, good, monkeypatch):
    other = {key: value + 1 for key, value in good.items()}
    state = {**nested(good, "module.encoder_q."), **nested(other, "module.encoder_k.")}
    message = refusal(write(tmp_path / "moco.pth", {"state_dict": state}))
    assert "holds 2 networks that may be meant, under 'module.encoder_q.' and 'module.encoder_k.'" in message
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line.strip() for line in message.splitlines()[-2:]), {"torch": torch})
    model = fresh()
    load_weights(model, SMALL, tmp_path / "one.pt")
    assert same(model, good)


def test_what_is_missing_under_a_prefix_is_named(tmp_path, good):
    state = nested({**good, "extra.weight": torch.ones(2)}, "backbone.")
    del state["backbone.bn1.bias"]
    message = refusal(write(tmp_path / "w.pth", {"state_dict": {**state, "head.weight": torch.ones(2)}}))
    assert "missing: bn1.bias" in message and "not expected: extra.weight" in message and "head" not in message


def test_a_backbone_of_the_user_with_a_known_name_and_no_weights(tmp_path):
    own, published = replace(BACKBONES["resnet50"], weights={}), next(iter(BACKBONES["resnet50"].weights))
    message = refusal(published, own, nn.Linear(1, 1))
    assert f"the weights {published} are for another resnet50" in message and "none" in message
