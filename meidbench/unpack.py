"""Unpacking of a downloaded archive, which is trusted with nothing: neither names, nor types, nor sizes."""

import os
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from meidbench.errors import DownloadError, MeidbenchError, first_few

MAX_BYTES = 1 << 30
MAX_MEMBERS = 10_000
_CHUNK = 1 << 20

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
                shutil.copyfileobj(source, file, _CHUNK)
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
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == entry.CRC
