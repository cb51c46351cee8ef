"""Downloads against a server on this machine; a guard fails any test that contacts another one."""

import hashlib
import io
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from material import LocalServer

import meidbench.annotations.download
import meidbench.files
from meidbench.annotations.download import LicenceNotAcceptedError, download_annotations, fetch, unpack
from meidbench.cli.benchmarks import download as command
from meidbench.errors import DownloadError
from meidbench.splits.manifests import Download, load_manifest

BODY = bytes(range(256)) * 1000
HALF = 7 << 14  # whole pieces of what is written at a time


class Site(LocalServer):
    """A server with a list of answers for each path; the last answer of a path repeats."""

    def __init__(self):
        self.answers = defaultdict(list)
        self.seen = []
        self.over = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.seen.append((self.path, dict(self.headers)))
                queue = site.answers[self.path]
                (queue.pop(0) if len(queue) > 1 else queue[0])(self)

        class Server(ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that hangs up is what several tests are about

        super().__init__(Handler, Server)

    def ranges(self):
        return [headers.get("Range") for _, headers in self.seen]

    def close(self):
        self.over.set()
        super().close()


def send(handler, status, body=b"", **headers):
    handler.send_response(status)
    for name, value in {"Content_Length": len(body), **headers}.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(body)


def whole(body=BODY, etag='"1"'):
    """A correct server: it serves ranges, unless the tag in If-Range is another one."""

    def answer(handler):
        asked = handler.headers.get("Range")
        if asked and handler.headers.get("If-Range", etag) == etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            send(handler, 206, body[start:], Content_Range=content_range, ETag=etag)
        else:
            send(handler, 200, body, ETag=etag)

    return answer


def no_ranges(body=BODY):
    return lambda handler: send(handler, 200, body)


def cut(length=HALF, body=BODY, etag='"1"'):
    """State the whole length and close the connection early."""
    return lambda handler: send(handler, 200, body[:length], Content_Length=len(body), ETag=etag)


def status(code, **headers):
    return lambda handler: send(handler, code, b"no", **headers)


def redirect(url):
    return lambda handler: send(handler, 302, Location=url)


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """Fail on a connection or a name look-up that leaves this machine, and lose no time between attempts."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        assert address[0] == "127.0.0.1", f"connection to {address}"
        return connect(self, address)

    def guarded_look_up(host, *args, **kwargs):
        assert host == "127.0.0.1", f"look-up of {host}"
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    monkeypatch.setattr(meidbench.annotations.download, "BACK_OFF_S", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "folder" / "list.lst"


def described(url, body=BODY):
    return Download(url=url, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())


def part_of(target):
    return target.with_name(target.name + ".part")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave_part(target, content):
    target.parent.mkdir()
    part_of(target).write_bytes(content)


def refused(site, target, **options):
    """Fetch ``/list.lst``, which must fail, and return the message."""
    with pytest.raises(DownloadError) as caught:
        fetch(described(f"{site.url}/list.lst"), target, **options)
    assert f"{site.url}/list.lst" in str(caught.value)
    assert "remedy: " in str(caught.value)
    return str(caught.value)


# --- what goes well ---


def test_file_arrives_whole_and_alone(site, target):
    site.answers["/list.lst"] = [whole()]
    counts = []
    path = fetch(described(f"{site.url}/list.lst"), target, progress=lambda *count: counts.append(count))
    assert path == target
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["list.lst"]
    assert counts[0] == ("list.lst", 0, len(BODY)) and counts[-1] == ("list.lst", len(BODY), len(BODY))
    assert site.seen[0][1]["Accept-Encoding"] == "identity"


def test_right_file_is_not_fetched_again(site, target):
    target.parent.mkdir()
    target.write_bytes(BODY)
    fetch(described(f"{site.url}/list.lst"), target)
    assert site.seen == []


def test_wrong_file_is_reported_and_replaced(site, target):
    site.answers["/list.lst"] = [whole()]
    target.parent.mkdir()
    target.write_bytes(b"old")
    told = []
    fetch(described(f"{site.url}/list.lst"), target, report=told.append)
    assert hashlib.sha256(b"old").hexdigest() in told[0]
    assert target.read_bytes() == BODY


def test_wrong_file_stays_until_the_right_one_is_here(site, target):
    site.answers["/list.lst"] = [status(404)]
    target.parent.mkdir()
    target.write_bytes(b"old")
    message = refused(site, target)
    assert "kept: the list.lst that was there, unchanged" in message
    assert target.read_bytes() == b"old"


# --- resuming ---


def test_cut_download_goes_on_where_it_stopped(site, target):
    site.answers["/list.lst"] = [cut(), whole()]
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [None, f"bytes={HALF}-"]
    assert site.seen[1][1]["If-Range"] == '"1"'


def test_file_that_changed_between_attempts_begins_anew(site, target):
    site.answers["/list.lst"] = [cut(body=b"x" * len(BODY), etag='"0"'), whole()]
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert len(site.seen) == 2


def test_part_of_an_earlier_run_is_continued(site, target):
    site.answers["/list.lst"] = [whole()]
    leave_part(target, BODY[:HALF])
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={HALF}-"]
    assert "If-Range" not in site.seen[0][1]


def test_complete_part_needs_no_request(site, target):
    leave_part(target, BODY)
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.seen == []


@pytest.mark.parametrize("left", [b"x" * HALF, b"x" * len(BODY), BODY + b"x"], ids=["some", "all", "more"])
def test_part_of_another_file_is_dropped(site, target, left):
    site.answers["/list.lst"] = [whole()]
    leave_part(target, left)
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges()[-1] is None


def test_server_that_ignores_ranges_starts_afresh(site, target):
    site.answers["/list.lst"] = [no_ranges()]
    leave_part(target, b"x" * HALF)
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={HALF}-"]


def test_416_starts_afresh(site, target):
    site.answers["/list.lst"] = [status(416), whole()]
    leave_part(target, BODY[:HALF])
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("header", [None, f"bytes 0-{len(BODY) - 1}/{len(BODY)}", "nonsense"])
def test_other_range_than_asked_for_is_not_appended(site, target, header):
    headers = {"Content_Range": header} if header else {}
    site.answers["/list.lst"] = [lambda handler: send(handler, 206, BODY[HALF:], **headers), whole()]
    leave_part(target, BODY[:HALF])
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges() == [f"bytes={HALF}-", None]


def test_interrupt_leaves_only_the_part(site, target):
    site.answers["/list.lst"] = [whole()]

    def interrupt(name, done, total):
        if done >= HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(described(f"{site.url}/list.lst"), target, progress=interrupt)
    assert names(target.parent) == ["list.lst.part"]
    left = part_of(target).read_bytes()
    assert HALF <= len(left) < len(BODY) and BODY.startswith(left)
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.ranges()[-1] == f"bytes={len(left)}-"


# --- files of which the size is not known, and of the digest only the beginning ---


def vaguely_described(url, body=BODY):
    return Download(url=url, bytes=None, sha256=hashlib.sha256(body).hexdigest()[:8])


def test_size_comes_from_the_server(site, target):
    site.answers["/list.lst"] = [whole()]
    counts = []
    wanted = vaguely_described(f"{site.url}/list.lst")
    fetch(wanted, target, progress=lambda *count: counts.append(count))
    assert target.read_bytes() == BODY and names(target.parent) == ["list.lst"]
    assert {total for _, _, total in counts} == {len(BODY)} and counts[-1][1] == len(BODY)
    fetch(wanted, target)
    assert len(site.seen) == 1


@pytest.mark.parametrize("answers", [[cut(), whole()], [no_ranges()], [status(503), whole()]])
@pytest.mark.parametrize("left", [b"", BODY[:HALF], BODY, BODY + b"x", b"x" * HALF, b"x" * len(BODY)], ids=len)
def test_file_of_unknown_size_is_resumed_or_begun_anew(site, target, answers, left):
    site.answers["/list.lst"] = list(answers)
    if left:
        leave_part(target, left)
    fetch(vaguely_described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY and names(target.parent) == ["list.lst"]
    if left == BODY:
        assert site.seen == []
    if left == BODY[:HALF]:
        assert site.ranges()[0] == f"bytes={HALF}-"


def test_part_that_is_longer_than_the_file_of_unknown_size_is_dropped(site, target):
    site.answers["/list.lst"] = [status(416), whole()]
    leave_part(target, BODY + b"x")
    fetch(vaguely_described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY and site.ranges() == [f"bytes={len(BODY) + 1}-", None]


def test_beginning_of_a_digest_still_refuses_another_file(site, target):
    site.answers["/list.lst"] = [whole(b"<html>")]
    with pytest.raises(DownloadError) as caught:
        fetch(vaguely_described(f"{site.url}/list.lst"), target)
    beginning = hashlib.sha256(BODY).hexdigest()[:8]
    assert f"expected: sha256 beginning with {beginning}\n" in str(caught.value)
    assert f"got: sha256 {hashlib.sha256(b'<html>').hexdigest()}" in str(caught.value)
    assert names(target.parent) == []


def test_body_without_any_size_is_not_begun(site, target):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    site.answers["/list.lst"] = [answer]
    with pytest.raises(DownloadError, match="got: a file of unstated size"):
        fetch(vaguely_described(f"{site.url}/list.lst"), target)
    assert names(target.parent) == []


@pytest.mark.parametrize("size, digest", [(9, "0" * 8), (9, "0" * 63), (None, "0" * 7), (None, ""), (None, "G" * 8)])
def test_digest_that_proves_too_little_is_refused(site, target, size, digest):
    with pytest.raises(DownloadError, match="is not a sha256"):
        fetch(Download(url=f"{site.url}/list.lst", bytes=size, sha256=digest), target)
    assert site.seen == []


# --- what goes wrong ---


def test_truncated_every_time_keeps_the_part(site, target):
    site.answers["/list.lst"] = [cut(), status(503)]
    message = refused(site, target, retries=2)
    assert len(site.seen) == 3
    assert f"kept: {HALF:,} bytes in {part_of(target)}" in message
    assert names(target.parent) == ["list.lst.part"]


def test_short_body_without_a_length_is_truncated_too(site, target):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY[:HALF])

    site.answers["/list.lst"] = [answer]
    assert f"got: {HALF:,} bytes, then the end" in refused(site, target, retries=1)
    assert len(site.seen) == 2


def test_corrupted_body_is_deleted(site, target):
    other = BODY[:-1] + b"x"
    site.answers["/list.lst"] = [whole(other)]
    message = refused(site, target)
    assert f"sha256 {hashlib.sha256(BODY).hexdigest()}" in message
    assert f"got: sha256 {hashlib.sha256(other).hexdigest()}" in message
    assert "kept: nothing" in message
    assert names(target.parent) == []
    assert len(site.seen) == 1


def test_file_of_another_size_is_not_even_begun(site, target):
    site.answers["/list.lst"] = [lambda handler: send(handler, 200, b"<html>", Content_Type="text/html")]
    assert "got: another file, 6 bytes (text/html)" in refused(site, target)
    assert names(target.parent) == []
    assert len(site.seen) == 1


def test_file_that_grew_is_not_resumed(site, target):
    site.answers["/list.lst"] = [whole(BODY + b"x")]
    leave_part(target, BODY[:HALF])
    assert f"got: another file, {len(BODY) + 1:,} bytes" in refused(site, target)
    assert part_of(target).read_bytes() == BODY[:HALF]


def test_endless_body_is_cut(site, target):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while not site.over.is_set():
            handler.wfile.write(BODY)

    site.answers["/list.lst"] = [answer]
    assert f"got: more than {len(BODY):,} bytes" in refused(site, target)
    assert names(target.parent) == []


@pytest.mark.parametrize("code", [403, 404, 410])
def test_refusal_is_not_repeated(site, target, code):
    site.answers["/list.lst"] = [status(code)]
    message = refused(site, target)
    assert f"got: the answer {code}" in message
    assert f"fetch it by hand, as {target}" in message
    assert len(site.seen) == 1
    assert names(target.parent) == []


def test_trouble_of_the_server_is_waited_out(site, target):
    site.answers["/list.lst"] = [status(500), status(429), whole()]
    told = []
    fetch(described(f"{site.url}/list.lst"), target, report=told.append)
    assert target.read_bytes() == BODY
    assert [line.rpartition("; ")[2] for line in told] == ["trying again (1 of 3)", "trying again (2 of 3)"]


def test_trouble_of_the_server_has_an_end(site, target):
    site.answers["/list.lst"] = [status(500)]
    assert "got: the answer 500" in refused(site, target, retries=2)
    assert len(site.seen) == 3


def test_retries_are_counted_from_the_last_progress(site, target):
    """Six attempts fail with 2 retries allowed, but each one brings bytes; then two bring none."""
    pieces = [1 << 14, *(n << 14 for n in range(2, 7))]

    def piece(length):
        def answer(handler):
            asked = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            content_range = f"bytes {asked}-{len(BODY) - 1}/{len(BODY)}"
            send(handler, 206, BODY[asked:length], Content_Length=len(BODY) - asked, Content_Range=content_range)

        return answer

    site.answers["/list.lst"] = [cut(pieces[0]), *(piece(length) for length in pieces[1:]), status(500), whole()]
    fetch(described(f"{site.url}/list.lst"), target, retries=2)
    assert target.read_bytes() == BODY and len(site.seen) == 8
    target.unlink()
    site.answers["/list.lst"] = [cut(), status(500)]
    refused(site, target, retries=2)
    assert len(site.seen) == 11


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed(site, target, monkeypatch, form):
    date = datetime.now(timezone.utc) + timedelta(seconds=100)
    value = "100" if form == "seconds" else format_datetime(date, usegmt=True)
    site.answers["/list.lst"] = [status(503, Retry_After=value), status(429, Retry_After="soon"), whole()]
    pauses, told = [], []
    monkeypatch.setattr("meidbench.annotations.download.time.sleep", pauses.append)
    fetch(described(f"{site.url}/list.lst"), target, report=told.append)
    assert target.read_bytes() == BODY
    assert 98 < pauses[0] <= 100 and pauses[1] < 1
    assert "s, as the server asks (1 of 3)" in told[0] and "asks" not in told[1]


@pytest.mark.parametrize("value", ["301", "9" * 10, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_pause_that_is_too_long_ends_the_download(site, target, monkeypatch, value):
    monkeypatch.setattr("meidbench.annotations.download.time.sleep", lambda seconds: pytest.fail("it waits"))
    site.answers["/list.lst"] = [status(503, Retry_After=value)]
    assert "with the request to wait" in refused(site, target)
    assert len(site.seen) == 1


@pytest.mark.parametrize("value", ["", "-5", "9" * 400, "1e9", "Mon, 01 Jan 1990 00:00:00 GMT", "x\x1b[2J"])
def test_a_pause_without_sense_is_as_none(site, target, value):
    site.answers["/list.lst"] = [status(503, Retry_After=value), whole()]
    told = []
    fetch(described(f"{site.url}/list.lst"), target, report=told.append)
    assert target.read_bytes() == BODY and "asks" not in told[0]


def test_connection_refused(tmp_path):
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/list.lst"
        with pytest.raises(DownloadError, match=r"(?s)refused.*kept: nothing.*remedy"):
            fetch(described(url), tmp_path / "list.lst", retries=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("sent", [None, HALF], ids=["at the head", "in the body"])
def test_time_out(site, target, sent):
    def answer(handler):
        if sent:
            send(handler, 200, BODY[:sent], Content_Length=len(BODY))
        site.over.wait(5)

    site.answers["/list.lst"] = [answer]
    message = refused(site, target, retries=0, timeout=(1, 0.1))
    assert "timed out" in message
    # Only whole pieces are written; the rest of what came before the silence is fetched again.
    assert part_of(target).exists() == bool(sent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full(site, target):
    site.answers["/list.lst"] = [whole()]
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    message = refused(site, target)
    assert "No space left" in message and "room" in message
    assert len(site.seen) == 1
    assert not target.exists()


def test_folder_that_is_a_file(site, tmp_path):
    (tmp_path / "folder").write_text("")
    refused(site, tmp_path / "folder" / "list.lst")
    assert site.seen == []


# --- addresses ---


def test_redirect_is_followed(site, target):
    site.answers["/list.lst"] = [redirect("/moved?x=1")]
    site.answers["/moved?x=1"] = [redirect(f"{site.url}/final")]
    site.answers["/final"] = [cut(), whole()]
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY
    assert site.seen[-1][0] == "/final" and site.ranges()[-1] == f"bytes={HALF}-"


@pytest.mark.parametrize(
    "location",
    [
        "http://example.org/list.lst",
        "//example.org/list.lst",
        "http://127.0.0.1@example.org/",
        "http://localhost:secret@example.org/",
        "http://example.org\\@127.0.0.1/",
        "http://127.0.0.1.example.org/",
        "http://localhost.example.org/",
        "http://10.0.0.1/",
        "ftp://127.0.0.1/list.lst",
        "file:///etc/passwd",
        "http://[::1/",
    ],
)
def test_redirect_to_an_unsafe_address_is_refused(site, target, location):
    site.answers["/list.lst"] = [redirect(location)]
    refused(site, target)
    assert len(site.seen) == 1
    assert names(target.parent) == []


def test_redirect_from_https_to_http_is_refused(site, target, monkeypatch):
    def answer(adapter, request, **options):
        """Play an https server, which could not run here without a certificate."""
        assert request.url == "https://example.org/list.lst"
        response = requests.Response()
        response.status_code, response.url, response.raw, response.request = 302, request.url, io.BytesIO(), request
        response.headers["Location"] = f"{site.url}/list.lst"
        return response

    site.answers["/list.lst"] = [whole()]
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
    with pytest.raises(DownloadError, match="which is not https"):
        fetch(described("https://example.org/list.lst"), target)
    assert site.seen == []


def test_every_attempt_begins_at_the_given_address(site, target, monkeypatch):
    send = requests.adapters.HTTPAdapter.send

    def answer(adapter, request, **options):
        if not request.url.startswith("https:"):
            return send(adapter, request, **options)
        response = requests.Response()
        response.status_code, response.url, response.raw, response.request = 503, request.url, io.BytesIO(), request
        return response

    site.answers["/list.lst"] = [redirect("https://example.org/list.lst"), whole()]
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
    fetch(described(f"{site.url}/list.lst"), target)
    assert target.read_bytes() == BODY


def test_redirect_loop_has_an_end(site, target):
    site.answers["/list.lst"] = [redirect("/list.lst")]
    assert "redirects" in refused(site, target)
    assert len(site.seen) == meidbench.annotations.download.MAX_REDIRECTS + 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3:8000", "[::1]", "[::1]:8000"])
def test_http_on_this_machine_is_asked(host, target, monkeypatch):
    asked = []

    def answer(adapter, request, **options):
        asked.append(request.url)
        raise requests.exceptions.SSLError("no second try")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
    with pytest.raises(DownloadError, match="no second try"):
        fetch(Download(url=f"http://{host}/list.lst", bytes=None, sha256="0" * 64), target)
    assert asked == [f"http://{host}/list.lst"]


@pytest.mark.parametrize("url", ["http://example.org/list.lst", "ftp://example.org/a", "list.lst", "http://"])
def test_unsafe_address_is_not_asked(tmp_path, url):
    with pytest.raises(DownloadError, match="remedy"):
        fetch(described(url), tmp_path / "list.lst")
    assert names(tmp_path) == []


# --- several at once ---


def test_two_processes_share_one_download(site, target):
    site.answers["/list.lst"] = [whole()]
    begun, go_on = threading.Event(), threading.Event()

    def hold(name, done, total):
        begun.set()
        assert go_on.wait(10)

    first = threading.Thread(target=fetch, args=(described(f"{site.url}/list.lst"), target), kwargs={"progress": hold})
    first.start()
    code = (
        "import sys; from pathlib import Path; from meidbench.annotations.download import fetch\n"
        "from meidbench.splits.manifests import Download\n"
        "url, size, digest, target = sys.argv[1:]\n"
        "fetch(Download(url, int(size), digest), Path(target), report=lambda line: print(line, flush=True))"
    )
    wanted = described(f"{site.url}/list.lst")
    arguments = [wanted.url, str(wanted.bytes), wanted.sha256, str(target)]
    assert begun.wait(10)
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as second:
        waiting = second.stdout.readline()
        go_on.set()
        rest = second.stdout.read()
    first.join()
    assert second.returncode == 0
    assert "another process" in waiting and "is there already" in rest
    assert len(site.seen) == 1
    assert target.read_bytes() == BODY
    assert names(target.parent) == ["list.lst"]


def test_lock_left_by_a_killed_process_does_not_block(site, target):
    site.answers["/list.lst"] = [whole()]
    target.parent.mkdir()
    (target.parent / ".list.lst.lock").touch()
    fetch(described(f"{site.url}/list.lst"), target)
    assert names(target.parent) == ["list.lst"]


def test_lock_that_its_former_holder_deleted_does_not_count(site, target, monkeypatch):
    site.answers["/list.lst"] = [whole()]
    lock, try_lock = target.parent / ".list.lst.lock", meidbench.files._try_lock
    tries = []

    def delete_first(descriptor):
        if not tries:
            lock.unlink()
        tries.append(descriptor)
        return try_lock(descriptor)

    monkeypatch.setattr(meidbench.files, "_try_lock", delete_first)
    fetch(described(f"{site.url}/list.lst"), target)
    assert len(tries) == 2
    assert names(target.parent) == ["list.lst"]


# --- archives ---


def archive(path, members):
    """Write a zip of ``(name or ZipInfo, content)``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for member, content in members:
            opened.writestr(member, content)
    return path


def member(name, mode=0, system=3):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = system, mode << 16
    return info


def test_shared_top_folder_is_left_out(tmp_path):
    members = [("Top/", b""), ("Top/a.csv", b"a"), ("Top/deep/b.txt", b"b"), ("__MACOSX/Top/._a.csv", b"m")]
    folder = tmp_path / "out"
    paths = unpack(archive(tmp_path / "a.zip", members), folder)
    assert paths == [folder / "a.csv", folder / "deep" / "b.txt"]
    assert (folder / "a.csv").read_bytes() == b"a" and (folder / "deep" / "b.txt").read_bytes() == b"b"
    assert names(folder) == ["a.csv", "deep"] and names(folder / "deep") == ["b.txt"]


def test_folders_stay_where_nothing_is_shared(tmp_path):
    folder = tmp_path / "out"
    unpack(archive(tmp_path / "a.zip", [("x/a", b"a"), ("y/a", b"b")]), folder)
    unpack(archive(tmp_path / "b.zip", [("z/a", b"a"), ("top", b"b")]), folder)
    assert (folder / "x" / "a").exists() and (folder / "z" / "a").exists() and (folder / "top").exists()


def test_unpacking_again_touches_only_what_differs(tmp_path):
    folder, told = tmp_path / "out", []
    path = archive(tmp_path / "a.zip", [("a", b"one"), ("b", b"two"), ("c", b"three")])
    unpack(path, folder)
    (folder / "b").write_bytes(b"TWO")
    (folder / "c").unlink()
    before = (folder / "a").stat()
    unpack(path, folder, report=told.append)
    assert (folder / "a").stat() == before or (folder / "a").stat().st_ino == before.st_ino
    assert (folder / "b").read_bytes() == b"two" and (folder / "c").read_bytes() == b"three"
    assert len(told) == 1 and str(folder / "b") in told[0]


@pytest.mark.parametrize(
    "bad",
    [
        member("../evil"),
        member("sub/../../evil"),
        member("..\\evil", system=0),
        member("sub/.. /evil"),
        member("/evil"),
        member("\\evil", system=0),
        member("C:evil"),
        member("C:\\evil", system=0),
    ],
    ids=lambda bad: bad.filename,
)
def test_unsafe_member_is_refused_before_anything_is_written(tmp_path, bad):
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    path = archive(tmp_path / "a.zip", [("good", b"good"), (bad, b"/etc/passwd")])
    with pytest.raises(DownloadError) as caught:
        unpack(path, folder)
    assert repr(bad.filename) in str(caught.value)
    assert names(folder) == [] and names(tmp_path) == ["a.zip", "deep"] and names(tmp_path / "deep") == ["out"]


def test_bomb_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", [("zeros", bytes(1_000_000)), ("more", bytes(1_000_000))])
    assert path.stat().st_size < 10_000
    with pytest.raises(DownloadError, match="2,000,000 bytes, expected at most 1,999,999"):
        unpack(path, tmp_path / "out", max_bytes=1_999_999)
    assert not (tmp_path / "out").exists()
    assert len(unpack(path, tmp_path / "out", max_bytes=2_000_000)) == 2


def test_member_larger_than_it_says_is_not_unpacked(tmp_path):
    path = archive(tmp_path / "a.zip", [("zeros", bytes(1_000_000))])
    size, lie = (1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert path.read_bytes().count(size) == 2
    path.write_bytes(path.read_bytes().replace(size, lie))
    with pytest.raises(DownloadError, match="damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damaged(content, how):
    if how == "cut":
        return content[: len(content) // 2]
    if how == "no zip":
        return b"<html>"
    if how == "empty":
        return b""
    if how == "encrypted":  # bit 0 of the flags, in the local header and in the directory
        content = bytearray(content)
        content[6] |= 1
        content[content.rindex(b"PK\x01\x02") + 8] |= 1
        return bytes(content)
    at = content.index(b"last") + 20  # within the packed bytes of the last member
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("how", ["cut", "no zip", "empty", "encrypted", "flipped"])
def test_damaged_archive_leaves_nothing(tmp_path, how):
    path = archive(tmp_path / "a.zip", [("first", b"first"), ("last", BODY)])
    if how == "encrypted":
        archive(path, [("first", b"first")])
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(DownloadError, match="encrypted" if how == "encrypted" else "damaged"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


# --- a benchmark's annotations, and the command ---


def offer(site, dataset, monkeypatch=None):
    """Put made-up annotations of a benchmark on the server and return a manifest that points at them."""
    manifest = load_manifest(dataset)
    contents = {file.name: file.name.encode() * 9 for file in (*manifest.files, manifest.class_file)}
    if manifest.downloads[0].url.endswith(".zip"):
        buffer = io.BytesIO()
        archive(buffer, [(f"Top/{name}", content) for name, content in contents.items()])
        contents = {manifest.downloads[0].url.rpartition("/")[2]: buffer.getvalue()}
    for name, content in contents.items():
        site.answers[f"/{name}"] = [whole(content)]
    downloads = tuple(described(f"{site.url}/{name}", content) for name, content in contents.items())
    manifest = replace(manifest, downloads=downloads)
    if monkeypatch:
        monkeypatch.setattr("meidbench.splits.manifests.load_manifest", lambda name: manifest)
    return manifest


def run(*arguments):
    # Before click 8.2 the runner mixes stderr into stdout unless told otherwise; now it cannot be told.
    separate = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    return CliRunner(**separate).invoke(command, list(arguments))


@pytest.mark.parametrize("dataset", ["videolt", "charadeslt", "charadesegolt"])
def test_annotations_arrive_under_their_names(site, tmp_path, dataset):
    manifest = offer(site, dataset)
    paths = download_annotations(manifest, tmp_path, accept_licence=True)
    assert paths == [tmp_path / file.name for file in (*manifest.files, manifest.class_file)]
    assert all(path.read_bytes() == path.name.encode() * 9 for path in paths)
    asked = len(site.seen)
    assert asked == len(manifest.downloads)
    paths[0].unlink()
    assert download_annotations(manifest, tmp_path, accept_licence=True) == paths
    assert paths[0].exists()
    assert len(site.seen) == asked + (dataset == "videolt")


def test_licence_must_be_accepted(site, tmp_path):
    manifest = offer(site, "charadeslt")
    with pytest.raises(LicenceNotAcceptedError) as caught:
        download_annotations(manifest, tmp_path, accept_licence=False)
    for text in (manifest.licence.name, manifest.licence.url, *manifest.licence.summary):
        assert text in str(caught.value)
    assert site.seen == [] and names(tmp_path) == []


def test_archive_that_lacks_a_file_is_told(site, tmp_path):
    manifest = offer(site, "charadeslt")
    content = archive(tmp_path / "a.zip", [("Top/Charades_v1_train.csv", b"")]).read_bytes()
    site.answers["/Charades.zip"] = [whole(content)]
    manifest = replace(manifest, downloads=(described(f"{site.url}/Charades.zip", content),))
    with pytest.raises(DownloadError, match=r"missing: Charades_v1_test\.csv, Charades_v1_classes\.txt"):
        download_annotations(manifest, tmp_path / "out", accept_licence=True)


def test_command_prints_paths_and_nothing_else_to_stdout(site, tmp_path, monkeypatch):
    manifest = offer(site, "charadeslt", monkeypatch)
    result = run("charadeslt", "--to", str(tmp_path), "--accept-licence")
    assert result.exit_code == 0, result.output
    wanted = [str(tmp_path / file.name) for file in (*manifest.files, manifest.class_file)]
    assert result.stdout.splitlines() == wanted
    assert manifest.licence.url in result.stderr and "Charades.zip: fetched" in result.stderr


def test_command_uses_the_home_folder(site, tmp_path, monkeypatch):
    offer(site, "videolt", monkeypatch)
    monkeypatch.setenv("MEIDBENCH_HOME", str(tmp_path))
    result = run("videolt", "--accept-licence")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "annotations" / "videolt" / "train.lst").exists()
    assert "e-mail" in result.stderr.rpartition("fetched")[2]


def test_command_without_the_licence(site, tmp_path, monkeypatch):
    manifest = offer(site, "charadeslt", monkeypatch)
    result = run("charadeslt", "--to", str(tmp_path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert manifest.licence.url in result.stderr and "--accept-licence" in result.stderr
    assert site.seen == [] and names(tmp_path) == []


def test_command_knows_the_datasets():
    result = run("ucf101", "--accept-licence")
    assert result.exit_code == 2
    assert "charadesegolt" in result.stderr


def test_command_passes_an_error_on(site, tmp_path, monkeypatch):
    offer(site, "charadeslt", monkeypatch)
    site.answers["/Charades.zip"] = [status(404)]
    result = run("charadeslt", "--to", str(tmp_path), "--accept-licence")
    assert isinstance(result.exception, DownloadError)
    assert result.exit_code == 1


def test_command_shows_bars_on_a_terminal(site, tmp_path, monkeypatch):
    offer(site, "videolt", monkeypatch)
    site.answers["/test.lst"].insert(0, status(500))
    monkeypatch.setattr(sys.modules["meidbench.cli.benchmarks"], "_on_terminal", lambda: True)
    result = run("videolt", "--to", str(tmp_path), "--accept-licence")
    assert result.exit_code == 0, result.output
    assert "train.lst: 100%" in result.stderr and "test.lst: the answer 500" in result.stderr
    assert len(result.stdout.splitlines()) == 4


# Runs the command in a process of its own, with the manifest of a server on this machine.
COMMAND = """
import pickle, sys
import meidbench.splits.manifests
manifest = pickle.loads(bytes.fromhex(sys.argv.pop(1)))
meidbench.splits.manifests.load_manifest = lambda name: manifest
from meidbench.cli import main
main()
"""


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_an_interrupted_download_is_kept_and_the_same_command_goes_on(site, tmp_path, number):
    manifest = offer(site, "videolt")
    first = replace(manifest.downloads[0], **vars(described(manifest.downloads[0].url)))
    manifest = replace(manifest, downloads=(first, *manifest.downloads[1:]))
    path = first.url.removeprefix(site.url)
    part = part_of(tmp_path / path[1:])

    def hold(handler):
        send(handler, 200, BODY[:HALF], Content_Length=len(BODY), ETag='"1"')
        site.over.wait(30)

    site.answers[path] = [hold, whole()]
    arguments = ["download", "videolt", "--to", tmp_path, "--accept-licence"]
    command = [sys.executable, "-c", COMMAND, pickle.dumps(manifest).hex(), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (part.exists() and part.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    site.over.set()
    kept = part.stat().st_size
    assert stdout == "" and 0 < kept <= HALF and not (tmp_path / path[1:]).exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        line = f"interrupted by {number.name}: the bytes received so far are kept; the same command goes on"
        assert process.returncode == 128 + number and stderr.splitlines()[-1] == line and "Traceback" not in stderr
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / path[1:]).read_bytes() == BODY and not part.exists()
    assert f"bytes={kept}-" in site.ranges()


def test_help_is_light_and_ends_with_an_example():
    result = run("--help")
    assert result.stdout.rstrip().endswith("meidbench download charadeslt --accept-licence")
    code = "import sys, meidbench.cli.benchmarks; print(sorted({'requests', 'tqdm'} & set(sys.modules)))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "[]"
