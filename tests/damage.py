"""Damage to files, drawn at random: bytes, tokens of text, and the structures of JSON, HDF5, Parquet and zip."""

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[random.Random, bytes], bytes]

_DEEP = "@deep@"
ODD = (
    *(None, True, -1, 0, 1, 3, 10**30, -(10**12), 1e308, 0.5, float("nan"), "", "x", "nan", "\x1b[31m"),
    *("..", "a" * 5000, [], {}, [1, 2], ["x"], {"x": 1}, [[0]]),
)  # fmt: skip
NUMBERS = (
    "-1",
    "0",
    "1",
    "7",
    "99",
    "1e400",
    "-1e9",
    "nan",
    "inf",
    "9" * 400,
    "1.5",
    "1_0",
    "",
    "0x1F",
    "\u0663",
    "1e-400",
)
TOKENS = (*NUMBERS, "x", "\x00", "\x1b[31m", '"', "'", ";", ",", "\n", "[0, 2]", "=1+1", "\ufeff", "a" * 3000)


# --- bytes --------------------------------------------------------------------------------------------------------


def flip_bits(draw: random.Random, raw: bytes) -> bytes:
    damaged = bytearray(raw)
    for _ in range(draw.choice([1, 1, 1, 2, 8, 64])):
        damaged[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _span(draw: random.Random, raw: bytes) -> tuple[int, int]:
    start = draw.randrange(len(raw))
    return start, min(start + draw.choice([1, 1, 2, 4, 8, 32, 128, 512, 4096]), len(raw))


def replace_bytes(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    return raw[:start] + draw.randbytes(stop - start) + raw[stop:]


def zero_bytes(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    return raw[:start] + bytes(stop - start) + raw[stop:]


def truncate(draw: random.Random, raw: bytes) -> bytes:
    return raw[: draw.randrange(len(raw))]


def cut_out(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    return raw[:start] + raw[stop:]


def insert_bytes(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    return raw[:start] + draw.randbytes(stop - start) + raw[start:]


def repeat_block(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    return raw[:stop] + raw[start:]


def swap_blocks(draw: random.Random, raw: bytes) -> bytes:
    start, stop = _span(draw, raw)
    other = min(draw.randrange(len(raw)), len(raw) - (stop - start))
    damaged = bytearray(raw)
    damaged[start:stop], damaged[other : other + stop - start] = raw[other : other + stop - start], raw[start:stop]
    return bytes(damaged)


BYTES = (
    flip_bits, flip_bits, replace_bytes, zero_bytes, truncate, cut_out, insert_bytes, repeat_block, swap_blocks,
)  # fmt: skip


def damage_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Apply one kind of damage that knows nothing of the form."""
    return draw.choice(BYTES)(draw, raw) if raw else draw.randbytes(8)


# --- text, JSON ---------------------------------------------------------------------------------------------------


def damage_text(draw: random.Random, raw: bytes) -> bytes:
    """Change a number, a token or a line."""
    text = raw.decode("utf-8", "surrogateescape")
    kind = draw.choice(["number", "number", "token", "line"])
    if kind == "line":
        lines = text.splitlines(keepends=True) or [""]
        here, there = draw.randrange(len(lines)), draw.randrange(len(lines))
        change = draw.choice(["delete", "repeat", "swap", "join"])
        if change == "swap":
            lines[here], lines[there] = lines[there], lines[here]
        elif change == "join":
            lines[here] = lines[here].rstrip("\n")
        else:
            lines[here : here + 1] = [] if change == "delete" else [lines[here]] * draw.choice([2, 2, 500])
        text = "".join(lines)
    else:
        found = list(re.finditer(r"-?\d+(\.\d+)?" if kind == "number" else r"[\w.-]+|[^\w\s]", text))
        if found:
            place = draw.choice(found)
            new = draw.choice(NUMBERS if kind == "number" else TOKENS)
            text = text[: place.start()] + new + text[place.end() :]
    return text.encode("utf-8", "surrogateescape")


def damage_json(draw: random.Random, raw: bytes) -> bytes:
    """Replace, delete or rename an entry anywhere in a JSON file, or in a line of one."""
    lines = raw.decode().splitlines() if raw.count(b"\n{") else [raw.decode()]
    place = draw.randrange(len(lines))
    content = json.loads(lines[place])
    spots: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            spots.append((node, key))
            if isinstance(value, dict | list):
                collect(value)

    if isinstance(content, dict | list):
        collect(content)
    if not spots:
        content = draw.choice(ODD)
    else:
        # One list of ten thousand numbers must not hide the other entries.
        node, key = draw.choice(draw.choices(spots, k=3) + spots[:40])
        change = draw.choice(["odd", "odd", "odd", "delete", "rename", "deep"])
        if change == "delete":
            del node[key]
        elif change == "rename" and isinstance(node, dict):
            node[draw.choice(["x", "", key + "x"])] = node.pop(key)
        else:
            node[key] = _DEEP if change == "deep" else draw.choice(ODD)
    lines[place] = json.dumps(content).replace(f'"{_DEEP}"', "[" * 20_000 + "]" * 20_000)
    return "\n".join(lines).encode() + b"\n"


# --- Parquet, zip, NumPy, safetensors -----------------------------------------------------------------------------


def damage_parquet(draw: random.Random, raw: bytes) -> bytes:
    """Change columns, rows, types or metadata, and write a sound Parquet file of it."""
    table = pq.read_table(io.BytesIO(raw))
    name = draw.choice(table.column_names)
    place, column = table.column_names.index(name), table.column(name)
    metadata = dict(table.schema.metadata or {})
    change = draw.choice(
        ["metadata"] * 3 + ["value"] * 2 + ["drop", "rename", "cast", "rows", "order", "null", "repeat"]
    )
    if change == "metadata" and metadata:
        key = draw.choice(sorted(metadata))
        metadata[key] = draw.choice([damage_text, damage_json])(draw, metadata[key])
        table = table.replace_schema_metadata(metadata)
    elif change == "drop":
        table = table.drop_columns([name])
    elif change == "rename":
        table = table.rename_columns(
            [draw.choice(["x", "subset"]) if other == name else other for other in table.column_names]
        )
    elif change in ("cast", "value", "null"):
        values = column.to_pylist()
        if change == "cast":
            values = [draw.choice([str, repr])(value) for value in values]
            table = table.set_column(place, name, pa.array(values))
        else:
            row = draw.randrange(max(len(values), 1))
            values[row] = None if change == "null" else values[draw.randrange(len(values))]
            table = table.set_column(place, table.schema.field(name), pa.array(values, column.type))
    elif change == "rows":
        table = table.slice(draw.randrange(len(table)), draw.randrange(len(table)))
    elif change == "order":
        table = table.take(draw.sample(range(len(table)), len(table)))
    else:
        table = pa.concat_tables([table, table.slice(0, draw.choice([1, len(table)]))])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def damage_zip(draw: random.Random, raw: bytes) -> bytes:
    """Change a member of an archive, and write a sound archive of it, with the checksums of the new content."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.randrange(len(members))
    name, content = members[place]
    change = draw.choice(["content"] * 6 + ["delete", "rename", "repeat"])
    if change == "content":
        npy = content.startswith(b"\x93NUMPY")
        members[place] = name, draw.choice([damage_bytes, damage_npy if npy else damage_bytes])(draw, content)
    elif change == "delete":
        del members[place]
    elif change == "rename":
        members[place] = name.replace("a", "b") + draw.choice(["", "x"]), content
    else:
        members.append((draw.choice([name, "../" + name]), content))
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return sink.getvalue()


def damage_npy(draw: random.Random, raw: bytes) -> bytes:
    """Change the text header of an array: shape, type, order."""
    (size,) = struct.unpack("<H", raw[8:10])
    header = raw[10 : 10 + size].rstrip()
    types = ["<f4", ">f4", "<f2", "|O", "<i8", "<U9", "<c8", "|V4", "|b1"]
    changed = draw.choice([
        lambda: re.sub(rb"\d+(?=[,)])", str(draw.choice([0, 1, 7, 10**6, 10**30, -1])).encode(), header, count=1),
        lambda: re.sub(rb"'[<>|]\w+'", f"'{draw.choice(types)}'".encode(), header),
        lambda: header.replace(b"False", b"True"),
        lambda: damage_text(draw, header),
    ])()  # fmt: skip
    changed += b" " * (-(len(changed) + 11) % 64) + b"\n"
    return raw[:8] + struct.pack("<H", len(changed) % 65536) + changed + raw[10 + size :]


def damage_safetensors(draw: random.Random, raw: bytes) -> bytes:
    """Change the JSON header of a safetensors file."""
    (size,) = struct.unpack("<Q", raw[:8])
    header = draw.choice([damage_json, damage_text])(draw, raw[8 : 8 + size])
    length = draw.choice([len(header)] * 5 + [2**63, 0, len(header) + 8])
    return struct.pack("<Q", length) + header + raw[8 + size :]


# --- HDF5 ---------------------------------------------------------------------------------------------------------


def damage_hdf5(draw: random.Random, raw: bytes) -> bytes:
    """Change an attribute or a dataset of an HDF5 file through the library."""
    sink = io.BytesIO(raw)
    with h5py.File(sink, "r+") as file:
        names = ["/"]
        file.visit(names.append)
        name = draw.choice(names)
        with_attributes = [other for other in names if len(file[other].attrs)]
        if with_attributes and draw.random() < 0.4:
            _damage_attribute(draw, file[draw.choice(with_attributes)])
        elif isinstance(file[name], h5py.Dataset):
            _damage_dataset(draw, file, name)
        elif name != "/":
            del file[name]
        else:
            file.attrs[draw.choice(["format", "format_version", "x"])] = draw.choice([1, 99, "x"])
    return sink.getvalue()


def _damage_attribute(draw: random.Random, found: Any) -> None:
    key = draw.choice(sorted(found.attrs))
    value = found.attrs[key]
    if draw.random() < 0.2:
        del found.attrs[key]
    elif isinstance(value, str) and draw.random() < 0.6:
        new = damage_json(draw, value.encode()) if value.startswith("{") else damage_text(draw, value.encode())
        found.attrs[key] = new.decode("utf-8", "replace").replace("\x00", "")[:60_000]
    else:
        found.attrs[key] = draw.choice([0, -1, 7, 10**15, 1.5, np.nan, "x", [1, 2], np.zeros((2, 2)), h5py.Empty("f4")])


def _damage_dataset(draw: random.Random, file: Any, name: str) -> None:
    data, dtype = file[name][()], file[name].dtype
    change = draw.choice([
        "value", "value", "value", "reverse", "short", "deep", "huge", "type", "text", "empty", "group", "loop",
        "external", "stored", "virtual", "gone", "swap",
    ])  # fmt: skip
    if change in ("value", "swap") and np.size(data):
        flat = np.array(data).reshape(-1)
        here, there = draw.randrange(len(flat)), draw.randrange(len(flat))
        flat[here] = flat[there] if change == "swap" else _odd_value(draw, dtype)
        file[name][...] = flat.reshape(np.shape(data))
        return
    attributes, kind = dict(file[name].attrs), draw.choice(["f8", "i1", "u8", "c8", "S3"])
    del file[name]
    made = {
        "reverse": lambda: file.create_dataset(name, data=data[::-1], dtype=dtype),
        "short": lambda: file.create_dataset(name, data=data[: draw.randrange(len(data))], dtype=dtype),
        "deep": lambda: file.create_dataset(name, data=data[None], dtype=dtype),
        "huge": lambda: file.create_dataset(name, (10**9, *data.shape[1:]), dtype, chunks=(16, *data.shape[1:])),
        "type": lambda: file.create_dataset(name, data=np.zeros(data.shape, kind)),
        "text": lambda: file.create_dataset(name, data=[b"\xff\x1b[31m"] * len(data)),
        "empty": lambda: file.create_dataset(name, data=h5py.Empty("f4")),
        "group": lambda: file.create_group(name),
        "loop": lambda: file.__setitem__(name, h5py.SoftLink("/" + name)),
        "external": lambda: file.__setitem__(name, h5py.ExternalLink("/etc/passwd", name)),
        "stored": lambda: file.create_dataset(name, data.shape, dtype, external=[("/etc/passwd", 0, data.nbytes)]),
        "virtual": lambda: file.create_virtual_dataset(name, _virtual_layout(data, dtype)),
    }.get(change)  # fmt: skip
    try:
        if made and np.ndim(data):
            made()
        for key, value in attributes.items():
            file[name].attrs[key] = value
    except (ValueError, TypeError, KeyError, OSError, AttributeError):
        pass  # this change does not go with this dataset: it is gone


def _odd_value(draw: random.Random, dtype: Any) -> Any:
    if dtype.kind in "OS":
        return draw.choice([b"", b"x", b"\xff", b"\x1b[31m", b"a" * 900])
    if dtype.kind == "f":
        return draw.choice([np.nan, np.inf, 0, -1, 60000])
    return draw.choice([0, 1, 2, 100, np.iinfo(dtype).max, np.iinfo(dtype).min])


def _virtual_layout(data: Any, dtype: Any) -> Any:
    layout = h5py.VirtualLayout(data.shape, dtype)
    layout[...] = h5py.VirtualSource(Path("/etc/passwd"), "x", data.shape)
    return layout


STRUCTURES: dict[str, Damage] = {
    "text": damage_text,
    "json": damage_json,
    "parquet": damage_parquet,
    "zip": damage_zip,
    "npy": damage_npy,
    "safetensors": damage_safetensors,
    "hdf5": damage_hdf5,
}
