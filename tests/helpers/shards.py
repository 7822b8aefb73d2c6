"""Shards of the pictures of small data sets: tar archives with annotations, and parquet files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet


def write_tar(path: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> Path:
    """Write members of these names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def artemis_tars(json_path: Path, images: Path, folder: Path, *, count: int) -> str:
    """Write the pictures of an ArtEmis file into so many tar archives; return their pattern."""
    entries = [*json.loads(json_path.read_text()).items()]
    for number in range(count):
        members = []
        for id, entry in entries[number * len(entries) // count : (number + 1) * len(entries) // count]:
            name = Path(entry["image_name"])
            members.append((str(name), (images / name).read_bytes()))
            members.append((str(name.with_suffix(".json")), json.dumps({**entry, "id": id}).encode()))
        write_tar(folder / f"{number:04}.tar", members)
    return f"{folder}/{{0000..{count - 1:04}}}.tar"


def write_parquet(path: Path, columns: Mapping[str, list], *, group: int = 3, **metadata: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    parquet.write_table(table.replace_schema_metadata(metadata or None), path, row_group_size=group)
    return path
