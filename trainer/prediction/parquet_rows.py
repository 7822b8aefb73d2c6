"""Rows of predictions as parquet: a column per key, and in `more`, as JSON, the keys with objects inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import to_json
from data.image_files import id_of

TYPES = {
    **dict.fromkeys(("id", "image", "emotion", "explanation", "text", "emotion_text"), "string"),
    **dict.fromkeys(("log_prob", "fit", "emotion_temperature"), "double"),
    **dict.fromkeys(("unfamiliar", "asked_emotion"), "bool"),
    **dict.fromkeys(("emotion_distribution", "vad"), "list of double"),
    "labels": "list of string",
}
MORE = "more"


def to_parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of a file with the same columns whatever the rows hold, so that files can be read as one."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kinds = {"string": pa.string(), "double": pa.float64(), "bool": pa.bool_()}
    kinds |= {f"list of {name}": pa.list_(kind) for name, kind in kinds.items()}
    schema = pa.schema([*((key, kinds[kind]) for key, kind in TYPES.items()), (MORE, pa.string())])
    flat = []
    for row in rows:
        more = {key: value for key, value in row.items() if key not in TYPES}
        flat.append({**row, "image": id_of(row["image"]), MORE: to_json(more).strip() if more else None})
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(flat, schema=schema), sink)
    return sink.getvalue().to_pybytes()


def read_parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that `to_parquet` wrote, without keys that they did not have."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(use_threads=False):
            for row in batch.to_pylist():
                more = json.loads(row.pop(MORE) or "{}")
                optional = (
                    "labels",
                    "vad",
                    "fit",
                    "unfamiliar",
                    "asked_emotion",
                    "emotion_temperature",
                    "emotion_text",
                )
                yield {key: value for key, value in row.items() if value is not None or key not in optional} | more
