"""Download of official annotation files (verified, resumed) and of a user's own files; never half a file."""

import errno
import hashlib
import ipaddress
import os
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import requests

from meidbench.errors import DownloadError, MeidbenchError, OutputError, RequestError, first_few
from meidbench.files import file_sha256, hash_file, locked, written_whole
from meidbench.names import DownloadProgress, ProgressBar, Report
from meidbench.splits.manifests import Download, Manifest, home

TIMEOUT_S = (10.0, 30.0)  # to connect, and between two pieces of the body
BACK_OFF_S = 0.5  # doubled at every attempt without progress
MAX_WAIT_S = 300.0  # where a server asks for a longer pause, the download ends
MAX_REDIRECTS = 5
MAX_BYTES = 1 << 28  # of an unpacked archive
_CHUNK = 1 << 14  # small, because a piece that was cut off is lost
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class LicenceNotAcceptedError(DownloadError):
    """The licence in the message was not accepted, so nothing was fetched."""


@dataclass
class _FailedError(Exception):
    """One attempt failed: what the server sent, whether to try again, and whether it was another file."""

    got: str
    again: bool
    other: bool = False
    wait: float = 0.0  # seconds that the server asks for


def download_annotations(
    manifest: Manifest,
    folder: Path,
    *,
    accept_licence: bool,
    progress: DownloadProgress | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Fetch the annotation files that the manifest names into a folder, and unpack those that are archives.

    Archives stay in the folder, so the next call finds them. ``accept_licence`` tells whether the user accepts
    ``manifest.licence_text``; ``progress`` and ``report`` are as for :func:`fetch`. Return the annotation files, and
    the file of class names last.

    Raises
    ------
    LicenceNotAcceptedError
        The licence was not accepted; nothing was fetched.
    DownloadError
        A file could not be fetched or unpacked, or the archive lacks one.
    """
    if not accept_licence:
        what = "the annotations are fetched only when their licence is accepted"
        raise LicenceNotAcceptedError(f"{what}\n{manifest.licence_text}")
    for download in manifest.downloads:
        target = folder / unquote(PurePosixPath(urlsplit(download.url).path).name)
        fetch(download, target, progress=progress, report=report)
        if target.suffix == ".zip":
            unpack(target, folder, report=report)
    paths = [folder / name for name in manifest.file_names]
    if missing := [path.name for path in paths if not path.is_file()]:
        expected = f"  expected in {folder}: {first_few(path.name for path in paths)}\n  missing: {first_few(missing)}"
        remedy = f"  remedy: get the missing files from {manifest.licence.url} into {folder} by hand"
        raise DownloadError(f"the download of {manifest.title} is not complete\n{expected}\n{remedy}")
    return paths


def fetch(
    download: Download,
    target: Path,
    *,
    progress: DownloadProgress | None = None,
    report: Report | None = None,
    retries: int = 3,
    timeout: tuple[float, float] = TIMEOUT_S,
) -> Path:
    """Fetch one file, unless the right file is there already.

    The address is https, or http on this very machine. Without a size in ``download``, the server must state one. The
    body goes to ``NAME.part`` beside the target, which later calls continue; only a file of the right size and digest
    is renamed to the target. The message of a ``DownloadError`` has the expected file, the answer, the pieces that are
    kept, and the remedy.

    ``progress`` is called with the bytes so far, which fall when a file starts again; ``report`` with lines of text on
    retries and waits. ``retries`` are attempts after a failed one, counted anew when more bytes have arrived than
    before. A server's Retry-After is obeyed up to ``MAX_WAIT_S``. ``timeout`` has the seconds to connect, and those
    between two pieces of the body.
    """
    shortest = 8 if download.bytes is None else 64  # a pinned size comes with a whole digest
    if not re.fullmatch(f"[0-9a-f]{{{shortest},64}}", download.sha256):
        raise DownloadError(f"{download.url} was not asked: {download.sha256!r} is not a sha256 of {shortest}+ digits")
    report = report or (lambda message: None)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One part file per target lets any later run resume it, so two processes must take turns.
        with locked(target, lambda: report(f"{target.name} is being fetched by another process; waiting for it")):
            if target.exists():
                if (digest := file_sha256(target)).startswith(download.sha256):
                    report(f"{target} is there already")
                    return target
                report(f"{target} is another file (sha256 {digest}); it is replaced when the right one is here")
            transfer = _Transfer(download, part, progress or (lambda name, done, total: None), timeout)
            failures, most = 0, transfer.most
            while (failed := transfer.attempt()) is not None:
                failures, most = (failures if transfer.most == most else 0) + 1, transfer.most
                if not failed.again or failures > retries:
                    raise failed
                pause = f" in {failed.wait:,.0f} s, as the server asks" if failed.wait else ""
                report(f"{target.name}: {failed.got}; trying again{pause} ({failures} of {retries})")
                time.sleep(max(failed.wait, BACK_OFF_S * 2 ** (failures - 1)))
            part.replace(target)
    except _FailedError as failed:
        remedy = f"try again, or fetch it by hand, as {target}, and try again"
        if failed.other:
            remedy = f"try again; if the same comes, put the source's new files, unpacked, into {target.parent} by hand"
        raise DownloadError(_message(download, target, failed.got, remedy)) from failed
    except OSError as error:
        remedy = f"make room and write access in {target.parent}, or choose another folder, and try again"
        raise DownloadError(_message(download, target, f"{type(error).__name__}: {error}", remedy)) from error
    return target


def _is_loopback(url: str) -> bool:
    """Return whether the host of an address is this very machine."""
    parts = urlsplit(url)
    # A user name in the address could look like a host.
    host = "" if "@" in parts.netloc else parts.hostname or ""
    with suppress(ValueError):
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


class _SafeSession(requests.Session):
    """Refuses an address whose answer somebody on the network could alter, also as the target of a redirect.

    https is safe, and http on this very machine, unless an https address redirects to it; so a session is for one
    attempt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        self.only_https = False

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request to a safe address; requests calls this for every redirect as well."""
        scheme = urlsplit(request.url or "").scheme
        self.only_https |= scheme == "https"
        if scheme != "https" and (self.only_https or scheme != "http" or not _is_loopback(request.url or "")):
            raise _FailedError(f"the address {request.url}, which is not https; it was not asked", again=False)
        return super().send(request, **options)


@dataclass
class _Transfer:
    """The download of one file into a part file, over all attempts."""

    download: Download
    part: Path
    progress: DownloadProgress
    timeout: tuple[float, float]
    etag: str = ""
    most: int = 0  # bytes that any attempt or earlier call has had

    def __post_init__(self) -> None:
        self.most = self.part.stat().st_size if self.part.exists() else 0

    def attempt(self) -> _FailedError | None:
        """Bring the part file to its full size and check its digest; return the failure, None on success."""
        try:
            self._complete_part()
            return None
        except _FailedError as failed:
            return failed
        except (requests.RequestException, ValueError) as error:
            passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
            again = isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)
            # requests wraps the reason in a sentence about a connection pool.
            reason = getattr(error.args[0] if error.args else None, "reason", None) or error
            return _FailedError(f"{type(error).__name__}: {reason}", again)

    def _complete_part(self) -> None:
        name, pinned = self.part.stem, self.download.sha256
        inherited = have = self.part.stat().st_size if self.part.exists() else 0
        digest = hash_file(self.part) if have else hashlib.sha256()
        total = self.download.bytes
        if total is None and have and digest.hexdigest().startswith(pinned):
            total = have
        if total is not None:
            self.progress(name, have, total)
        if total is None or have < total:
            # Without a content encoding, sizes and offsets are those of the file itself.
            headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
            if have and self.etag:
                headers["If-Range"] = self.etag
            with (
                _SafeSession() as session,
                session.get(self.download.url, headers=headers, stream=True, timeout=self.timeout) as response,
            ):
                if response.status_code == 200:
                    digest, have, inherited = hashlib.sha256(), 0, 0
                total = self._check_answer(response, have)
                with self.part.open("ab" if have else "wb") as file:
                    for chunk in response.iter_content(_CHUNK):
                        have += len(chunk)
                        if have > total:
                            break
                        file.write(chunk)
                        digest.update(chunk)
                        self.most = max(self.most, have)
                        self.progress(name, have, total)
                    # Or a power cut after the rename could leave an empty file under the final name.
                    file.flush()
                    os.fsync(file.fileno())
        if have < total:
            raise _FailedError(f"{have:,} bytes, then the end", again=True)
        if have > total or not digest.hexdigest().startswith(pinned):
            self.part.unlink()
            got = f"more than {total:,} bytes" if have > total else f"sha256 {digest.hexdigest()}"
            # The part of an earlier call may belong to another file: another attempt starts again.
            raise _FailedError(got, again=inherited > 0, other=True)

    def _check_answer(self, response: requests.Response, have: int) -> int:
        """Return the size of the whole file; refuse an answer that is neither the file nor the rest of it."""
        status, headers = response.status_code, response.headers
        if status == 416 and have:
            self.part.unlink()
            raise _FailedError("416, the server cannot resume from this part; starting again", again=True)
        if status not in (200, 206):
            got, wait = f"the answer {status} {response.reason}", _retry_after(headers.get("Retry-After", ""))
            if wait > MAX_WAIT_S:
                raise _FailedError(f"{got}, with the request to wait {wait:,.0f} s", again=False)
            raise _FailedError(got, again=status in _PASSING, wait=wait)
        size = None if "Content-Encoding" in headers else headers.get("Content-Length")
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
            if not match or int(match[1]) != have:
                self.part.unlink(missing_ok=True)
                raise _FailedError(f"another range, {headers.get('Content-Range')}; starting again", again=True)
            size = match[2]
        kind = headers.get("Content-Type", "of no type")
        stated = int(size) if size and size.isdigit() else None
        total = stated if self.download.bytes is None else self.download.bytes
        if total is None:  # a body without an end could fill the disk before its digest is known
            raise _FailedError(f"a file of unstated size ({kind})", again=False, other=True)
        if stated is not None and stated != total:
            raise _FailedError(f"another file, {stated:,} bytes ({kind})", again=False, other=True)
        etag = headers.get("ETag", "")
        self.etag = "" if etag.startswith("W/") else etag  # a weak one is not valid with a range
        return total


def _retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, which holds a number or a date; 0 where it is neither."""
    if re.fullmatch(r"[0-9]{1,20}", value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return max((date - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _message(download: Download, target: Path, got: str, remedy: str) -> str:
    part = target.with_name(f"{target.name}.part")
    size = part.stat().st_size if part.is_file() else 0
    kept = [f"{size:,} bytes in {part}, to resume from"] if size else []
    kept += [f"the {target.name} that was there, unchanged"] if target.is_file() else []
    expected = "" if download.bytes is None else f"{download.bytes:,} bytes, "
    expected += "sha256 " if len(download.sha256) == 64 else "sha256 beginning with "
    return (
        f"cannot fetch {download.url}\n  expected: {expected}{download.sha256}\n"
        f"  got: {got}\n  kept: {'; '.join(kept) or 'nothing'}\n  remedy: {remedy}"
    )


def unpack(archive: Path, folder: Path, *, report: Report | None = None, max_bytes: int = MAX_BYTES) -> list[Path]:
    """Unpack a zip archive into a folder, without the one top folder that all its members may share.

    Every member is read and its checksum compared before the first file is written; every name must lead into the
    folder. ``report`` is called with a line of text for each replaced file; at most ``max_bytes`` may be unpacked.
    Return the files in the order of the archive, also those that were there already. ``DownloadError`` if the archive
    is damaged or too large, a member would land outside the folder, or a file cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            # Finder puts resource forks of the files into a folder of its own.
            members = [e for e in opened.infolist() if not e.is_dir() and not e.filename.startswith("__MACOSX/")]
            # An archive may state wrong sizes, but zipfile never yields more than the stated bytes.
            if (size := sum(entry.file_size for entry in members)) > max_bytes:
                raise _FailedError(f"{size:,} bytes, expected at most {max_bytes:,}", again=False)
            names = [_member_parts(entry.filename) for entry in members]
            contents = [opened.read(entry) for entry in members]
    except _FailedError as failed:
        raise DownloadError(f"will not unpack {archive}: {failed.got}; nothing was written") from None
    except Exception as error:  # zipfile raises a dozen kinds: BadZipFile, zlib.error, EOFError, struct.error, ...
        damage = f"the archive is damaged ({type(error).__name__}: {error})"
        raise DownloadError(f"cannot unpack {archive}: {damage}\n  remedy: delete it and download it again") from error
    skip = len({parts[0] for parts in names}) == 1 and all(len(parts) > 1 for parts in names)
    paths = [folder.joinpath(*parts[skip:]) for parts in names]
    for path, content in zip(paths, contents, strict=True):
        if path.is_file() and path.read_bytes() == content:
            continue
        if path.exists() and report:
            report(f"{path} differs from the archive's and is replaced")
        try:
            with written_whole(path) as temporary:
                temporary.write_bytes(content)
        except (OSError, OutputError) as error:
            remedy = f"make room and write access there, or unpack the archive into {folder} by hand"
            raise DownloadError(f"cannot unpack {archive} into {folder}: {error}\n  remedy: {remedy}") from error
    return paths


def _member_parts(name: str) -> list[str]:
    """Split a member's name at either separator, because some archivers write backslashes."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    # A colon is a drive letter on Windows, which also drops blanks and dots at the end of a name.
    if any(":" in part or not part.strip(" .") for part in parts):
        raise _FailedError(f"{name!r} leads out of the folder", again=False)
    return parts


# --- files of the user, at any address ------------------------------------------------------------------------------

# In what fsspec tells of a file, the facts that change with its content.
_VERSION_FACTS = re.compile(
    "etag|digest|md5|checksum|crc32c|generation|blob.?id|last.?modified|mtime|created|updated", re.I
)


def fetch_url(url: str, *, progress: ProgressBar | None = None, report: Report | None = None) -> Path:
    """Fetch a file by its address (``https://``, ``s3://``, ``hf://``, ...) through fsspec; return the local copy.

    The copy lies below ``MEIDBENCH_HOME/remote`` and is used again while the address tells the same size and the same
    ETag, digest or time of the last change; where it tells none of these, the file is fetched again. A ``file://``
    address is the file itself. ``DownloadError`` if the file cannot be fetched whole, ``MeidbenchError`` if a package
    is missing that reads the address.
    """
    report = report or (lambda message: None)
    # Queries, fragments and user names may be secrets, as in signed addresses.
    shown = re.sub("//[^/]*@", "//", re.split("[?#]", url)[0])
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError as error:
        raise RequestError(f"{shown} is no address: {error}") from None
    if scheme == "http" and not _is_loopback(url):
        raise DownloadError(f"{shown} was not asked: its answer could be altered on the way; use https")
    filesystem, path = _open_filesystem(url, shown)
    if "file" in (filesystem.protocol, *filesystem.protocol):
        return Path(path)
    try:
        facts = filesystem.info(path)
    except Exception as error:  # each file system raises errors of its own
        raise _unfetched(shown, error) from None
    if facts.get("type") == "directory":
        raise DownloadError(f"{shown} is a folder; name a file in it")
    size = facts.get("size")
    known = {key: str(value) for key, value in sorted(facts.items()) if _VERSION_FACTS.search(key)}
    source, version = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (url, f"{size} {known}"))
    remote = home() / "remote"
    name = re.sub(r"[^\w.-]", "_", PurePosixPath(shown).name)[-100:].lstrip(".") or "file"
    target = remote / f"{source}-{version}" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(remote / source, lambda: report(f"{shown} is being fetched by another process; waiting for it")):
        if not (known and target.is_file()):
            report(f"fetching {shown}" + ("" if size is None else f" ({size:,} bytes)"))
            with written_whole(target) as temporary:
                _fetch_into(temporary, filesystem, path, shown, size, progress)
        for old in remote.glob(f"{source}-*"):
            if old != target.parent:
                shutil.rmtree(old, ignore_errors=True)
    return target


def _open_filesystem(url: str, shown: str) -> tuple[Any, str]:
    options: Mapping[str, Any] = {}
    try:
        from fsspec.core import url_to_fs

        if urlsplit(url).scheme.lower() in ("http", "https"):
            options = {"client_kwargs": _http_settings()}
        filesystem, path = url_to_fs(url, **options)
    except ImportError as error:
        cause = error if error.name else error.__cause__
        package = (getattr(cause, "name", None) or "").partition(".")[0]
        also = "" if package in ("", "fsspec", "aiohttp") else f" {package.replace('_', '-')}"
        needed = " and ".join(dict.fromkeys(["fsspec", package or "fsspec"]))
        absent = f"{package or 'fsspec'} is not installed"
        raise MeidbenchError(f"{shown} is read by {needed}; {absent}: pip install 'meidbench[remote]'{also}") from None
    except Exception as error:
        raise RequestError(f"{shown} cannot be read: {str(error).strip() or type(error).__name__}") from None
    return filesystem, path


def _http_settings() -> dict[str, Any]:
    """Return what aiohttp needs to stop in time, and to refuse a redirect to an address that would be refused."""
    from aiohttp import ClientTimeout, TraceConfig

    async def check_redirect(session: Any, context: Any, facts: Any) -> None:
        source = str(facts.response.url)
        target = urljoin(source, facts.response.headers.get("Location", ""))
        if not target.startswith("https:") and (source.startswith("https:") or not _is_loopback(target)):
            raise DownloadError(f"a redirect to {re.split('[?#]', target)[0]}, which is not https; it was not asked")

    connect, read = TIMEOUT_S
    trace = TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    return {"timeout": ClientTimeout(sock_connect=connect, sock_read=read), "trace_configs": [trace]}


def _fetch_into(
    temporary: Path, filesystem: Any, path: str, shown: str, size: int | None, progress: ProgressBar | None
) -> None:
    """Fetch a file whole into a temporary file."""
    from fsspec.callbacks import Callback

    name = PurePosixPath(path).name
    with progress(f"bytes of {name}", size) if progress and size else nullcontext(lambda steps: None) as advance:

        class Steps(Callback):  # type: ignore[misc, unused-ignore]
            def relative_update(self, inc: int = 1) -> None:
                advance(inc)

        try:
            filesystem.get_file(path, str(temporary), callback=Steps())
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise _unfetched(shown, error) from None
    if size not in (None, got := temporary.stat().st_size):
        raise _unfetched(shown, EOFError(f"{got:,} of {size:,} bytes, then the end"))


def _unfetched(shown: str, error: Exception) -> DownloadError:
    # For fsspec, each failure of a first request is a file that is not there.
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    reason = re.sub(r"[?]\S*", "?...", (str(cause).strip().splitlines() or [""])[0])
    got = reason if isinstance(cause, DownloadError) else f"{type(cause).__name__}: {reason}"
    if status := getattr(cause, "status", None):
        got = f"the answer {status} {getattr(cause, 'message', '')}".rstrip()
    elif isinstance(cause, FileNotFoundError):
        got = "there is no such file, or it is not public"
    return DownloadError(
        f"cannot fetch {shown}\n  got: {got}\n  remedy: compare the address, try again, or fetch the file by hand and "
        "name the local one"
    )
