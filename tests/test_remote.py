"""Files at addresses: fetched through fsspec from a server on this machine and from file systems in memory."""

import errno
import json
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import numpy as np
import pytest
from material import LocalServer

import meidbench as mb
from meidbench.annotations.download import fetch_url
from meidbench.errors import DownloadError, MeidbenchError, OutputError, RequestError
from meidbench.predictions.align import read_predictions
from meidbench.splits.manifests import home

pytest.importorskip("aiohttp", reason="an optional dependency, of the extra 'remote'")


class Site(LocalServer):
    """A server of one body, which counts the requests for it."""

    def __init__(self):
        self.body, self.headers, self.announced, self.bodies_sent, self.status = b"", {}, None, 0, 200
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                found = self.path.startswith("/run.parquet")
                self.send_response(site.status if found else 404)
                self.send_header("Content-Length", str(site.announced or len(site.body)) if found else "0")
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()
                site.bodies_sent += 1
                self.wfile.write(site.body)

        super().__init__(Handler)
        self.url += "/run.parquet"


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def memory():
    """A file system of fsspec in memory, which is empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def predictions(toy_split, tmp_path):
    ids = toy_split.video_ids("test")
    scores = np.random.default_rng(0).normal(size=(len(ids), toy_split.num_classes)).astype(np.float32)
    return mb.write_predictions(tmp_path / "local.parquet", ids, scores, toy_split, "test")


def kept():
    return sorted(path.name for path in (home() / "remote").rglob("*") if path.is_file())


def test_predictions_at_an_address_are_scored_as_the_file_itself(predictions, site, memory, toy_split_file, run):
    site.body, site.headers = predictions.read_bytes(), {"ETag": '"1"'}
    memory.pipe("/a/run.parquet", site.body)
    want = run("evaluate", predictions, "--split", toy_split_file, "--json", "-").stdout
    assert json.loads(want)["mAP"]
    for url in (site.url, f"{site.url}?token=secret", "memory://a/run.parquet", f"file://{predictions}"):
        outcome = run("evaluate", url, "--split", toy_split_file, "--json", "-")
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.stdout == want and "secret" not in outcome.stderr
    assert read_predictions(site.url).video_ids == read_predictions(predictions).video_ids
    assert kept() == ["run.parquet"] * 3


def test_addresses_are_scored_and_compared_in_python(predictions, memory, toy_split):
    memory.pipe("/a@1.parquet", predictions.read_bytes())
    want = mb.evaluate(predictions, split=toy_split)
    assert mb.evaluate("memory://a@1.parquet", split=toy_split).to_json() == want.to_json()
    compared = mb.compare({"a": ["memory://a@1.parquet"], "b": "memory://a@1.parquet"}, toy_split)
    assert [method.mAP["overall"].value for method in compared.methods] == pytest.approx([want.mAP.overall] * 2)


def test_runs_at_addresses_are_compared_under_their_names(predictions, site, memory, toy_split_file, run):
    site.body = predictions.read_bytes()
    memory.pipe("/meid.parquet", site.body)
    outcome = run(
        "compare", f"bce={site.url}?a=b", "memory://meid.parquet", site.url, "--split", toy_split_file, "--json", "-",
        "--bootstrap", 10,
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stderr
    assert [entry["name"] for entry in json.loads(outcome.stdout)["methods"]] == ["bce", "meid", "run"]


@pytest.mark.parametrize("name", ["ETag", "Content-MD5"])
def test_a_copy_is_used_again_until_the_file_changes(site, name):
    site.body, site.headers, told = b"first", {name: "1"}, []
    first = fetch_url(site.url, report=told.append)
    assert first.read_bytes() == b"first" and fetch_url(site.url, report=told.append) == first
    assert told == [f"fetching {site.url} (5 bytes)"] and site.bodies_sent == 1
    site.body, site.headers = b"other", {name: "2"}  # of the same size
    second = fetch_url(site.url)
    assert second.read_bytes() == b"other" and site.bodies_sent == 2
    assert kept() == ["run.parquet"] and not first.exists()


def test_a_file_that_tells_no_version_is_fetched_every_time(site):
    for body in (b"first", b"other"):
        site.body = body
        assert fetch_url(site.url).read_bytes() == body
    assert kept() == ["run.parquet"]


def test_progress_counts_the_bytes(memory):
    from contextlib import contextmanager

    memory.pipe("/big.bin", bytes(12 << 20))
    steps, titles = [], []

    @contextmanager
    def progress(title, total):
        titles.append((title, total))
        yield steps.append

    fetch_url("memory://big.bin", progress=progress)
    assert titles == [("bytes of big.bin", 12 << 20)] and sum(steps) == 12 << 20


def test_a_file_that_is_cut_off_leaves_nothing(site):
    site.body, site.announced, site.headers = b"half", 8, {"ETag": "1"}
    with pytest.raises(DownloadError) as caught:
        fetch_url(site.url)
    told = str(caught.value)
    assert f"cannot fetch {site.url}" in told and "remedy: compare the address, try again" in told
    assert kept() == []


def test_a_file_that_is_not_there_and_a_folder_are_refused(site, memory, toy_split_file, run):
    outcome = run("evaluate", site.url.replace("run", "none"), "--split", toy_split_file)
    assert outcome.exit_code == 1 and "\n  got: the answer 404 Not Found\n" in outcome.stderr
    with pytest.raises(DownloadError, match="got: ClientConnectorError: Cannot connect to host localhost:1"):
        fetch_url("https://localhost:1/a.parquet?token=secret")
    with pytest.raises(DownloadError, match="got: there is no such file, or it is not public"):
        fetch_url("memory://none")
    memory.pipe("/a/b.parquet", b"x")
    with pytest.raises(DownloadError, match="memory://a is a folder; name a file in it"):
        fetch_url("memory://a")
    assert kept() == []


def test_a_full_disk_is_no_fault_of_the_address(memory, monkeypatch):
    memory.pipe("/a.bin", b"x")

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(memory), "get_file", fail)
    with pytest.raises(OutputError, match="No space left on device; make room"):
        fetch_url("memory://a.bin")
    assert kept() == []


def test_plain_http_of_another_machine_is_not_asked():
    with pytest.raises(DownloadError, match=r"http://example.org/a was not asked: .*; use https"):
        fetch_url("http://user:secret@example.org/a?token=secret")
    with pytest.raises(DownloadError, match="was not asked"):
        fetch_url("http://127.0.0.1@example.org/a")
    with pytest.raises(DownloadError, match="^http://example.org/a was not asked"):
        fetch_url("http://user:sec@ret@example.org/a#secret")
    with pytest.raises(RequestError, match="is no address: Invalid IPv6 URL"):
        fetch_url("https://[::1/a?token=secret")


def test_a_redirect_is_followed_to_safe_addresses_only(site):
    site.status = 302
    site.headers = {"Location": "/elsewhere"}
    with pytest.raises(DownloadError, match="404 Not Found"):  # it was asked
        fetch_url(site.url)
    site.headers = {"Location": "http://192.0.2.1/run.parquet?token=secret"}
    with pytest.raises(DownloadError) as caught:
        fetch_url(f"{site.url}?other")
    assert "got: a redirect to http://192.0.2.1/run.parquet, which is not https; it was not asked" in str(caught.value)
    assert kept() == []


@pytest.mark.parametrize(("url", "absent", "needed", "also"), [
    ("https://example.org/a.parquet", "fsspec.core", "fsspec", ""),
    ("https://example.org/a.parquet", "aiohttp", "fsspec and aiohttp", ""),
    ("s3://bucket/a.parquet", "s3fs", "fsspec and s3fs", " s3fs"),
    ("gs://bucket/a.parquet", "gcsfs", "fsspec and gcsfs", " gcsfs"),
    ("hf://datasets/u/r/a.parquet", "huggingface_hub", "fsspec and huggingface_hub", " huggingface-hub"),
])  # fmt: skip
def test_a_package_that_is_not_installed_is_named(url, absent, needed, also, monkeypatch, toy_split_file, run):
    package = absent.partition(".")[0]
    remedy = f"is read by {needed}; {package} is not installed: pip install 'meidbench[remote]'{also}"
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MeidbenchError) as caught:
        read_predictions(url)
    assert str(caught.value) == f"{url} {remedy}"
    outcome = run("evaluate", url, "--split", toy_split_file)
    assert outcome.exit_code == 1 and outcome.stderr == f"Error: {url} {remedy}\n"


def test_an_unknown_kind_of_address_is_a_wrong_call(toy_split_file, run):
    with pytest.raises(RequestError, match="xyz://a cannot be read: Protocol not known: xyz"):
        fetch_url("xyz://a")
    assert run("evaluate", "xyz://a", "--split", toy_split_file).exit_code == 2


def test_the_name_of_a_copy_leads_nowhere(memory):
    memory.pipe("/a/...", b"x")
    memory.pipe("/a/b c;$(x).csv", b"y")
    assert fetch_url("memory://a/b c;$(x).csv").name == "b_c___x_.csv"
    assert fetch_url("memory://a/...").name == "file"


def test_a_local_file_is_no_copy(tmp_path):
    Path(tmp_path, "a.csv").write_text("x")
    assert fetch_url(f"file://{tmp_path}/a.csv") == tmp_path / "a.csv"
    assert not (home() / "remote").exists()
