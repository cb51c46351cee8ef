"""Fetching of official annotation files: verified, resumed, and never half a file under its final name."""

import hashlib
import ipaddress
import os
import re
import secrets
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

import requests

from meidbench.errors import DownloadError, MeidbenchError, bullet_list, first_few
from meidbench.files import file_sha256, locked
from meidbench.splits.manifests import Download, Manifest

MAX_BYTES = 1 << 30
MAX_MEMBERS = 10_000
_UNPACK_CHUNK = 1 << 20

Report = Callable[[str], None]


def unpack(
    archive: Path,
    folder: Path,
    *,
    report: Report | None = None,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> list[Path]:
    """Unpack a zip archive into a folder, without the one top folder that all its members may share.

    Every member is checked before anything is written, and every member is read and its checksum compared
    before the first file gets its name; a file that is there already with the right content is left alone.

    Parameters
    ----------
    archive : Path
        The zip file.
    folder : Path
        Where its files are to lie; nothing is written outside.
    report : callable, optional
        Is told of a file that differed and was replaced.
    max_bytes, max_members : int
        An archive that says it holds more than this is refused.

    Returns
    -------
    list of Path
        The files of the archive, in its order, whether or not they had to be written.

    Raises
    ------
    DownloadError
        The archive is damaged, encrypted or too large, a member is a link or would land outside the
        folder, or the folder cannot be written to.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked(opened, archive, folder, max_bytes, max_members)
            _write(opened, members, report or (lambda message: None))
    except MeidbenchError:
        raise
    except OSError as error:
        raise DownloadError(
            f"cannot unpack {archive} into {folder}: {error}\n"
            f"  way out: see to room and write access there, or unpack the archive into {folder} by hand"
        ) from error
    except Exception as error:
        # On damaged input zipfile raises a dozen kinds: BadZipFile, zlib.error, EOFError, struct.error, ...
        raise DownloadError(
            f"cannot unpack {archive}: the archive is damaged ({type(error).__name__}: {error})\n"
            "  way out: delete it and download it again"
        ) from error
    return [path for _, path in members]


def _checked(
    opened: zipfile.ZipFile, archive: Path, folder: Path, max_bytes: int, max_members: int
) -> list[tuple[zipfile.ZipInfo, Path]]:
    """Return each file of the archive with the path that it is to get, or refuse the archive as a whole."""
    entries = opened.infolist()
    # The sizes are the archive's own claim, and yet a cap: zipfile never yields more than the claim.
    claimed = sum(entry.file_size for entry in entries)
    if len(entries) > max_members or claimed > max_bytes:
        raise DownloadError(
            f"will not unpack {archive}\n"
            f"  expected: at most {max_members:,} members and {max_bytes:,} bytes\n"
            f"  got: {len(entries):,} members and {claimed:,} bytes; nothing was written"
        )

    named = [(entry, _parts(entry.filename)) for entry in entries]
    problems = [problem for entry, parts in named if (problem := _problem(entry, parts))]
    # Finder puts resource forks of the files, which nobody wants, into a folder of its own.
    named = [(entry, parts) for entry, parts in named if parts and parts[0] != "__MACOSX"]
    shared = {parts[0] for _, parts in named}
    nested = all(len(parts) > 1 or entry.is_dir() for entry, parts in named)
    skip = 1 if len(shared) == 1 and nested else 0

    root = folder.resolve()
    members = []
    taken: set[str] = set()
    for entry, parts in named:
        if entry.is_dir():
            continue
        path = folder.joinpath(*parts[skip:])
        # A folder there already may be a link to elsewhere, which no check of the name can see.
        if not problems and not path.parent.resolve().is_relative_to(root):
            problems.append(f"{entry.filename!r} would land outside through a link in {folder}")
        if (key := "/".join(parts).casefold()) in taken:
            problems.append(f"{entry.filename!r} is there twice")
        taken.add(key)
        members.append((entry, path))
    if problems:
        raise DownloadError(
            f"will not unpack {archive}\n"
            f"  expected: plain files inside {folder}\n"
            f"  got: {first_few(problems)}; nothing was written"
        )
    return members


def _parts(name: str) -> list[str]:
    """Split a member's name, with either separator, since some archivers on Windows write backslashes."""
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _problem(entry: zipfile.ZipInfo, parts: list[str]) -> str:
    name = entry.filename
    if name.startswith(("/", "\\")):
        return f"{name!r} is an absolute name"
    # A colon is a drive letter or a hidden stream on Windows, which also drops blanks and dots at the end.
    if any(":" in part or not part.strip(" .") for part in parts):
        return f"{name!r} leads out of the folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{name!r} is a link or a device"
    if entry.flag_bits & 0x1:
        return f"{name!r} is encrypted"
    return ""


def _write(opened: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, Path]], report: Report) -> None:
    with ExitStack() as cleanup:
        staged = []
        for entry, path in members:
            if path.exists():
                if _holds(path, entry):
                    continue
                report(f"{path} differs from the archive's and is replaced")
            path.parent.mkdir(parents=True, exist_ok=True)
            # A random name, so that two processes that unpack the same archive never share a file.
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            cleanup.callback(temporary.unlink, missing_ok=True)
            with opened.open(entry) as source, temporary.open("xb") as file:
                shutil.copyfileobj(source, file, _UNPACK_CHUNK)
                file.flush()
                os.fsync(file.fileno())
            staged.append((temporary, path))
        for temporary, path in staged:
            temporary.replace(path)


def _holds(path: Path, entry: zipfile.ZipInfo) -> bool:
    if not path.is_file() or path.stat().st_size != entry.file_size:
        return False
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_UNPACK_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == entry.CRC


TIMEOUT_S = (10.0, 30.0)  # to connect, and between two pieces of the body
BACK_OFF_S = 0.5  # doubled at every attempt
MAX_REDIRECTS = 5
_CHUNK = 1 << 14  # a piece that was cut off is lost, so not larger
_DIGEST_LENGTH = 64
_SHORTEST_DIGEST = 8
_PASSING = {408, 425, 429, 500, 502, 503, 504}

Progress = Callable[[str, int, int], None]


class LicenceNotAcceptedError(DownloadError):
    """Nothing was fetched, since the licence in the message was not accepted."""


class _FailedError(Exception):
    """One attempt failed: what came instead, whether another may help, whether it was another file."""

    def __init__(self, got: str, *, again: bool, other: bool = False) -> None:
        super().__init__(got)
        self.again = again
        self.other = other


def licence_text(manifest: Manifest) -> str:
    """Render the terms of a benchmark's annotations for a reader.

    Examples
    --------
    >>> from meidbench.splits.manifests import load_manifest
    >>> print(licence_text(load_manifest("videolt")))
    VideoLT: VideoLT, non-commercial research use
      https://github.com/17Skye17/VideoLT
      - For non-commercial research ...
    """
    licence = manifest.licence
    terms = bullet_list((*licence.summary, licence.splits))
    return f"{manifest.title}: {licence.name}\n  {licence.url}\n{terms}"


def download_annotations(
    manifest: Manifest,
    folder: Path,
    *,
    accept_licence: bool,
    progress: Progress | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Fetch the annotation files of a benchmark, and unpack those that are archives.

    Parameters
    ----------
    manifest : Manifest
        Names the sources.
    folder : Path
        Where the files are to lie; made if need be. Archives stay beside what was unpacked from them, so
        that the next call finds them.
    accept_licence : bool
        Whether the user accepts ``licence_text(manifest)``.
    progress, report : callable, optional
        As for :func:`fetch`.

    Returns
    -------
    list of Path
        The annotation files that the manifest names, and the file of class names last.

    Raises
    ------
    LicenceNotAcceptedError
        The licence was not accepted; nothing was fetched.
    DownloadError
        A file could not be fetched or unpacked, or the archive lacks one.
    """
    if not accept_licence:
        raise LicenceNotAcceptedError(
            f"the annotations are fetched only when their licence is accepted\n{licence_text(manifest)}"
        )
    with requests.Session() as session:
        for download in manifest.downloads:
            target = folder / unquote(PurePosixPath(urlsplit(download.url).path).name)
            fetch(download, target, session=session, progress=progress, report=report)
            if target.suffix == ".zip":
                unpack(target, folder, report=report)
    paths = [folder / file.name for file in (*manifest.files, manifest.class_file)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DownloadError(
            f"the download of {manifest.title} is not complete\n"
            f"  expected in {folder}: {first_few(path.name for path in paths)}\n"
            f"  missing: {first_few(missing)}\n"
            f"  way out: get the missing files from {manifest.licence.url} into {folder} by hand"
        )
    return paths


def fetch(
    download: Download,
    target: Path,
    *,
    session: requests.Session | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    retries: int = 3,
    timeout: tuple[float, float] = TIMEOUT_S,
) -> Path:
    """Fetch one file, or find that it is there already.

    The body goes to ``NAME.part`` beside the target, which later calls continue; only a file of the right
    size and digest is renamed to the target.

    Parameters
    ----------
    download : Download
        Address (https, or http on this very machine), size and sha256. Without a size, the one that the server
        states is taken, and an answer that states none is refused.
    target : Path
        The file's final path.
    session : requests.Session, optional
        Is used and left open; without it one is made for the call.
    progress : callable, optional
        Called as ``progress(name, bytes_done, bytes_total)``; the count falls back when a file begins anew.
    report : callable, optional
        Called with a line of text when something happens that is no failure yet: a retry, a wait.
    retries : int
        How many attempts follow a first one that failed in a way that may pass.
    timeout : (float, float)
        Seconds to connect, and between two pieces of the body.

    Raises
    ------
    DownloadError
        Says what came instead of the file, what is kept, and how to go on.
    """
    # Where the size is pinned the whole digest is too; a shorter one there has lost its end.
    shortest = _SHORTEST_DIGEST if download.bytes is None else _DIGEST_LENGTH
    if not re.fullmatch(f"[0-9a-f]{{{shortest},{_DIGEST_LENGTH}}}", download.sha256):
        raise DownloadError(
            f"{download.url} was not asked: {download.sha256!r} is no sha256 of {shortest} digits or more"
        )
    report = report or (lambda message: None)
    own = session or requests.Session()
    part = target.with_name(f"{target.name}.part")
    transfer = _Transfer(download, target.name, part, own, progress or (lambda name, done, total: None), timeout)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two writers would mix their pieces in one part file. Part names of their own would keep them apart,
        # but no later run would find such a file to resume it.
        with locked(target, lambda: report(f"{target.name} is being fetched by another process; waiting for it")):
            if target.exists():
                if _is_digest(digest := file_sha256(target), download.sha256):
                    report(f"{target} is there already")
                    return target
                report(f"{target} is another file (sha256 {digest}); it is replaced when the right one is here")
            for attempt in range(retries + 1):
                try:
                    transfer.attempt()
                    break
                except _FailedError as failed:
                    if not failed.again or attempt == retries:
                        raise
                    report(f"{target.name}: {failed}; trying again ({attempt + 1} of {retries})")
                    time.sleep(BACK_OFF_S * 2**attempt)
            part.replace(target)
    except _FailedError as failed:
        by_hand = f"fetch it by hand, as {target}, and try again"
        if failed.other:
            by_hand = f"if the same comes, put the source's new files, unpacked, into {target.parent} by hand"
        raise DownloadError(_message(download, target, str(failed), f"try again, or {by_hand}")) from failed
    except OSError as error:
        way_out = f"see to room and write access in {target.parent}, or choose another folder, and try again"
        raise DownloadError(_message(download, target, f"{type(error).__name__}: {error}", way_out)) from error
    finally:
        if session is None:
            own.close()
    return target


@dataclass
class _Transfer:
    """One file on its way: what all attempts at it share."""

    download: Download
    name: str
    part: Path
    session: requests.Session
    progress: Progress
    timeout: tuple[float, float]
    etag: str = ""

    def attempt(self) -> None:
        """Bring the part file to its full size and check its digest."""
        inherited = have = self.part.stat().st_size if self.part.exists() else 0
        digest = hashlib.sha256()
        if have:
            with self.part.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        total = self.download.bytes
        if total is None and have and _is_digest(digest.hexdigest(), self.download.sha256):
            total = have
        if total is not None:
            self.progress(self.name, have, total)
        if total is None or have < total:
            with self._request(have) as response:
                if response.status_code == 200:
                    digest, have, inherited = hashlib.sha256(), 0, 0
                total = self._check_answer(response, have)
                with self.part.open("ab" if have else "wb") as file:
                    for chunk in self._body(response):
                        have += len(chunk)
                        if have > total:
                            break
                        file.write(chunk)
                        digest.update(chunk)
                        self.progress(self.name, have, total)
                    # Else a power cut after the rename could leave an empty file under the final name.
                    file.flush()
                    os.fsync(file.fileno())
        if have < total:
            raise _FailedError(f"{have:,} bytes, then the end", again=True)
        if have > total:
            self.part.unlink()
            raise _FailedError(f"more than {total:,} bytes", again=inherited > 0, other=True)
        if not _is_digest(digest.hexdigest(), self.download.sha256):
            self.part.unlink()
            # What an earlier call left may have been the beginning of another file, so begin anew.
            raise _FailedError(f"sha256 {digest.hexdigest()}", again=inherited > 0, other=True)

    def _request(self, have: int) -> requests.Response:
        """Ask for the file from byte ``have`` on, and follow redirects to addresses that are safe."""
        # Another encoding would make sizes and offsets those of the packed body.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            # Kept in memory only: across calls the pinned digest tells whether the pieces fit.
            if self.etag:
                headers["If-Range"] = self.etag
        url, before = self.download.url, ""
        try:
            for _ in range(MAX_REDIRECTS + 1):
                url = _safe_url(url, before)
                response = self.session.get(
                    url, headers=headers, stream=True, allow_redirects=False, timeout=self.timeout
                )
                location = self.session.get_redirect_target(response)
                if location is None:
                    return response
                response.close()
                url, before = urljoin(url, location), url
        except (requests.RequestException, ValueError) as error:
            raise _failure(error) from error
        raise _FailedError(f"more than {MAX_REDIRECTS} redirects, the last one to {url}", again=False)

    def _check_answer(self, response: requests.Response, have: int) -> int:
        """Return the size of the whole file, if the answer brings the file, or its rest."""
        status, headers = response.status_code, response.headers
        if status == 416 and have:
            self.part.unlink()
            raise _FailedError("416, the server cannot go on from what is here; beginning anew", again=True)
        if status not in (200, 206):
            raise _FailedError(f"the answer {status} {response.reason}", again=status in _PASSING)
        size: str | None = headers.get("Content-Length")
        if "Content-Encoding" in headers:
            size = None  # of the packed body
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
            if not match or int(match[1]) != have:
                self.part.unlink(missing_ok=True)
                raise _FailedError(f"another range, {headers.get('Content-Range')}; beginning anew", again=True)
            size = match[2]
        kind = headers.get("Content-Type", "of no type")
        stated = int(size) if size and size.isdigit() else None
        total = stated if self.download.bytes is None else self.download.bytes
        if total is None:
            # A body without an end in sight could fill the disk before its digest is looked at.
            raise _FailedError(f"a file of unstated size ({kind})", again=False, other=True)
        if stated is not None and stated != total:
            raise _FailedError(f"another file, {stated:,} bytes ({kind})", again=False, other=True)
        etag = headers.get("ETag", "")
        self.etag = "" if etag.startswith("W/") else etag  # a weak one may not go with a range
        return total

    def _body(self, response: requests.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_content(_CHUNK)
        except requests.RequestException as error:
            raise _failure(error) from error


def _is_digest(found: str, pinned: str) -> bool:
    """Tell whether a digest is the pinned one, or begins with it where only its beginning was published."""
    return found.startswith(pinned)


def _failure(error: Exception) -> _FailedError:
    again = isinstance(
        error,
        (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError),
    ) and not isinstance(error, requests.exceptions.SSLError)
    # requests wraps the reason in a sentence about a connection pool.
    reason = getattr(error.args[0] if error.args else None, "reason", None) or error
    return _FailedError(f"{type(error).__name__}: {reason}", again=again)


def _safe_url(url: str, before: str) -> str:
    """Return the address as it will be sent, if nobody on the way can alter what it yields.

    https is safe, http only on this very machine, and not when an https address led there.
    """
    # The prepared form is judged: as given, `http://a\@b` has one host for urllib and another for urllib3.
    prepared = requests.Request("GET", url).prepare().url or ""
    parts = urlsplit(prepared)
    if parts.scheme == "https":
        return prepared
    host = parts.hostname or ""
    loopback = host == "localhost"
    with suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if parts.scheme == "http" and loopback and not before.startswith("https:"):
        return prepared
    step = f"a redirect from {before} to {url}" if before else f"the address {url}"
    raise _FailedError(f"{step}, which is not https; it was not asked", again=False)


def _message(download: Download, target: Path, got: str, way_out: str) -> str:
    part = target.with_name(f"{target.name}.part")
    size = part.stat().st_size if part.is_file() else 0
    kept = [f"{size:,} bytes in {part}, where the next try goes on"] if size else []
    kept += [f"the {target.name} that was there, unchanged"] if target.is_file() else []
    return (
        f"cannot fetch {download.url}\n"
        f"  expected: {_expected(download)}\n"
        f"  got: {got}\n"
        f"  kept: {'; '.join(kept) or 'nothing'}\n"
        f"  way out: {way_out}"
    )


def _expected(download: Download) -> str:
    size = "" if download.bytes is None else f"{download.bytes:,} bytes, "
    whole = len(download.sha256) == _DIGEST_LENGTH
    return f"{size}sha256 {'' if whole else 'beginning with '}{download.sha256}"
