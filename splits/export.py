"""A split as CSV, and as the lists that the code of VideoLT and MEID reads."""

import csv
from pathlib import Path

from meidbench.files import written_whole
from meidbench.names import SUBSETS
from meidbench.splits.split import SCHEMA, Split


def write_csv(split: Split, path: Path) -> Path:
    """Write the columns of a split file as CSV.

    Labels are joined by ``;``, as are segments ``label start end``, which is the form of the official Charades files;
    an unknown length is an empty cell.
    """
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, SCHEMA.names, lineterminator="\n")
        writer.writeheader()
        for batch in split.table.to_batches():
            for row in batch.to_pylist():
                row["labels"] = ";".join(map(str, row["labels"]))
                row["length_s"] = "" if row["length_s"] != row["length_s"] else f"{row['length_s']:.7g}"
                row["segments"] = ";".join(
                    f"{part['label']} {part['start_s']:.7g} {part['end_s']:.7g}" for part in row["segments"]
                )
                writer.writerow(row)
    return path


def write_lists(split: Split, folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """Write one list per subset: ``VIDEOID c1,c2``, classes in the order of first occurrence, rows in official order.

    Parameters
    ----------
    split : Split
    folder : Path
        The folder of the lists.
    names : dict
        File name by subset.

    Returns
    -------
    dict
        Path by subset.
    """
    paths = {}
    for subset in SUBSETS:
        rows = split.rows(subset)
        lines = []
        for video_id, labels, segments in zip(
            rows.column("video_id").to_pylist(),
            rows.column("labels").to_pylist(),
            rows.column("segments").to_pylist(),
            strict=True,
        ):
            ordered = dict.fromkeys(part["label"] for part in segments) if segments else labels
            lines.append(f"{video_id} {','.join(map(str, ordered))}\n")
        paths[subset] = folder / names[subset]
        with written_whole(paths[subset]) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths
