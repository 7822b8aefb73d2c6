"""List the rows of parquet and Arrow files with the places of their pictures, without reading the pictures.

A column of pictures holds bytes, or structs of bytes and path, as the library datasets writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.readers.shard_lists import Shard
from data.shards import ARROW, address, arrow_errors, arrow_table, picture_column

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_GROUP = 1 << 30  # bytes of a row group, which is read as a whole
DATASETS = b"huggingface"  # key of the metadata in which the library datasets stores the names of classes


class TableRow(NamedTuple):
    number: int  # from 1
    picture: Path | None  # its address; None if the file has no column of pictures
    name: str  # of the picture, "" if it has none
    cells: dict[str, Any]  # of the other columns


def read_table_shard(shard: Shard, *, cells: bool = True) -> Iterator[TableRow]:
    """Yield the rows in order, with the names of classes in place of their numbers.

    Args:
        cells: False reads no other column than the pictures' names.

    Raises:
        OSError, ValueError: the file is damaged, or one of its row groups is too large.
    """
    number = 0
    with arrow_errors():
        for group, column, table in _parts(shard.path, cells=cells):
            names = classes(table.schema)
            for row, record in enumerate(table.to_pylist()):
                number += 1
                picture, name = None, ""
                if column is not None:
                    name = str((record.pop(column, None) or {}).get("path") or "")
                    picture = address(shard.path, group, row, name or f"row-{number}")
                yield TableRow(number, picture, name, _named(record, names))


def _parts(path: Path, *, cells: bool) -> Iterator[tuple[int, str | None, pa.Table]]:
    """Yield the number of each row group, the column of pictures, and a table in which this has structs of a path."""
    import pyarrow.parquet as parquet

    if path.suffix.lower() == ARROW:
        whole = arrow_table(path)
        column = picture_column(whole.schema)
        yield 0, column, _without_bytes(whole, column, cells=cells)
        return
    with parquet.ParquetFile(path) as file:
        column = picture_column(file.schema_arrow)
        leaves = [file.schema.column(i).path for i in range(len(file.schema))]
        kept = [leaf for leaf in leaves if (cells and leaf.split(".")[0] != column) or leaf == f"{column}.path"]
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            if about.total_byte_size > LARGEST_GROUP:
                raise ValueError(
                    f"its row group {group} has {about.total_byte_size:,} bytes, and the limit is {LARGEST_GROUP:,}; "
                    "write it with row_group_size=100"
                )
            table = file.read_row_group(group, columns=kept, use_threads=False)
            yield group, column, table if table.num_columns else _empty(about.num_rows)


def _without_bytes(table: pa.Table, column: str | None, *, cells: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as compute
    import pyarrow.types as types

    kept = table.drop_columns([column]) if column is not None else table
    kept = kept if cells and kept.num_columns else _empty(len(table))
    if column is None:
        return kept
    kind = table.schema.field(column).type
    if not types.is_struct(kind) or kind.get_field_index("path") < 0:
        return kept
    paths = compute.struct_field(table.column(column), "path").combine_chunks()
    return kept.append_column(column, pa.StructArray.from_arrays([paths], ["path"]))


def _empty(rows: int) -> pa.Table:
    """Return a table of so many rows with a column that is of no use: without any, it would have no rows."""
    import pyarrow as pa

    return pa.table({"": pa.nulls(rows)})


def classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of classes by column, which the library datasets stores beside their numbers."""
    try:
        features = json.loads((schema.metadata or {})[DATASETS])["info"]["features"]
        return {column: about["names"] for column, about in features.items() if about.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _named(record: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    record.pop("", None)
    for column, of_column in names.items():
        value = record.get(column)
        if isinstance(value, int) and 0 <= value < len(of_column):
            record[column] = of_column[value]
    return record
