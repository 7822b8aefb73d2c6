"""Read annotated pictures from shards: tar archives with KEY.jpg and KEY.json, KEY.txt or KEY.cls; parquet; Arrow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError, shorten
from common.reading import expand_user
from data.emotions import emotion_index, one_hot
from data.languages import language_name
from data.readers.annotations import collect_faults, object_of, parse_json
from data.readers.artemis import sample_of
from data.readers.shard_lists import Shard, find_shards
from data.readers.table import Row, read_rows, samples_of
from data.readers.table_shards import TableRow, read_table_shard
from data.readers.tar_shards import Picture, read_beside, read_tar
from data.samples import Samples
from data.schema import Sample, Skipped
from data.shards import TAR, place_of, read_picture
from data.split_names import NAMES, SECTIONS

NEEDED = "KEY.json with emotions, KEY.txt or KEY.cls"


class Annotated(NamedTuple):
    samples: Samples
    skipped: list[Skipped]  # shards and pictures that cannot be used
    folder: Path | None  # in which the pictures are, if the rows have their names instead of their bytes


def read_shards(dataset: Mapping, split: str, *, labels: Sequence[str], faults: list[str] | None = None) -> Annotated:
    """Return one sample per picture, in the order of the shards.

    Args:
        dataset: the section `dataset` of the configuration; json_path of the split names the shards.
        labels, faults: see data.readers.table.read_table.

    Raises:
        UserError: json_path names no shards, or unusable annotations.
    """
    files, where = dataset[split], f"dataset.{split}.json_path"
    found = find_shards(str(files["json_path"]), where=where, follow_links=bool(dataset.get("follow_links")))
    if found is None:
        raise UserError(
            f"{where}={files['json_path']} names no shards: give a pattern such as train-{{000..099}}.tar, or a folder "
            "of .tar, .parquet or .arrow files"
        )
    shards, skipped = _of_split(found.found, SECTIONS[split]), [*found.skipped]
    if len({shard.path.suffix.lower() == TAR for shard in shards}) > 1:
        raise UserError(f"{where}={files['json_path']}: tar archives and tables cannot be mixed; name one kind")
    if shards[0].path.suffix.lower() == TAR:
        samples = Samples.pack(_Tars(labels, faults).samples(shards, skipped), labels)
        return Annotated(samples, skipped, None)
    folder = expand_user(files["visual_dir"] or shards[0].path.parent)
    rows = [row for shard in shards for row in _rows(shard, folder, labels, faults, skipped)]
    if not rows and skipped:
        return Annotated(Samples.pack((), labels), skipped, None)
    options = {"labels": labels, "split": SECTIONS[split], "faults": faults}
    samples = samples_of(_apart(rows), Path(str(files["json_path"])), **options)
    return Annotated(samples, skipped, None if all(place_of(row.path) for row in rows) else folder)


def pictures_in(shard: Shard) -> tuple[list[Sample], list[Skipped]]:
    """Return the pictures of a shard without annotations, and what cannot be used; ids begin with the shard's name."""
    try:
        if shard.path.suffix.lower() == TAR:
            found = read_tar(shard)
            return [Sample(f"{shard.name}/{one.name}", one.path, ()) for one in found.pictures], found.skipped
        rows = [row for row in read_table_shard(shard, cells=False) if row.picture is not None]
    except (OSError, ValueError) as error:  # also pyarrow's
        return [], [_unreadable(shard, error)]
    samples = [Sample("/".join(filter(None, (shard.name, str(row.number), row.name))), row.picture, ()) for row in rows]
    reason = "the shard has no column of pictures (bytes, or structs of bytes and path)"
    return samples, [] if samples else [Skipped(shard.name, shard.path, reason)]


def _unreadable(shard: Shard, error: Exception) -> Skipped:
    return Skipped(shard.name, shard.path, f"the shard cannot be read ({shorten(error, 200)})")


def _of_split(shards: list[Shard], split: str) -> list[Shard]:
    """Return the shards in the subfolder of a split, if there are such subfolders, or all."""
    splits = [NAMES.get(shard.name.partition("/")[0].lower()) for shard in shards]
    own = [shard for shard, name in zip(shards, splits, strict=True) if name == split]
    return own or shards


def _rows(
    shard: Shard, folder: Path, labels: Sequence[str], faults: list[str] | None, skipped: list[Skipped]
) -> list[Row]:
    try:
        found = list(read_table_shard(shard))
    except (OSError, ValueError) as error:  # also pyarrow's
        skipped.append(_unreadable(shard, error))
        return []
    place = {row.number: row.picture for row in found if row.picture is not None}
    cells = ((row.number, _with_name(row, shard)) for row in found)
    options = {"labels": labels, "faults": faults, "place": place or None, "line_name": "row"}
    return list(read_rows(cells, shard.path, folder, **options))


def _with_name(row: TableRow, shard: Shard) -> dict[str, object]:
    name = {} if row.picture is None else {"image": row.name or f"{shard.name}/{row.number}"}
    return name | {key: value for key, value in row.cells.items() if key not in name}


def _apart(rows: list[Row]) -> list[Row]:
    """Give pictures with equal names and different bytes names of their own; rows of equal bytes are one picture."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        places[row.name].append(index)
    for name, same in places.items():
        if len(same) > 1 and place_of(rows[same[0]].path):
            numbers: dict[bytes, int] = {}
            for index in same:
                digest = blake2b(read_picture(rows[index].path) or b"").digest()
                number = numbers.setdefault(digest, len(numbers) + 1)
                if number > 1:
                    rows[index] = rows[index]._replace(name=f"{name} ({number})")
    return rows


class _Tars:
    """Annotations of tar archives; of one kind for all pictures, as the first has."""

    def __init__(self, labels: Sequence[str], faults: list[str] | None) -> None:
        self.labels, self.faults = labels, faults
        self.kind: str | None = None  # what the first picture has beside it
        self.ids: set[str] = set()

    def samples(self, shards: Sequence[Shard], skipped: list[Skipped]) -> Iterator[Sample]:
        for shard in shards:
            try:
                contents = read_tar(shard)
            except OSError as error:
                skipped.append(_unreadable(shard, error))
                continue
            skipped.extend(contents.skipped)
            for picture in contents.pictures:
                with collect_faults(self.faults):
                    sample = self._sample(shard, picture)
                    if sample is not None:
                        yield sample
                        continue
                    reason = f"the shard has no annotation of it: {NEEDED}"
                    skipped.append(Skipped(f"{shard.name}/{picture.name}", picture.path, reason))

    def _sample(self, shard: Shard, picture: Picture) -> Sample | None:
        where = f"{shard.path}: {picture.name}"
        texts = {suffix: self._text(shard, place, f"{where}: {suffix}") for suffix, place in picture.beside.items()}
        record = object_of(parse_json(texts[".json"], where=where), where=where) if ".json" in texts else {}
        id = record["id"] if isinstance(record.get("id"), (str, int)) else picture.name
        id = str(id) if str(id) not in self.ids else f"{shard.name}/{picture.name}"
        annotated = "emotions" in record
        kind = "emotions" + " and explanations" * ("explanations" in record) if annotated else ""
        kind = kind or " and ".join(suffix for suffix in (".txt", ".cls") if texts.get(suffix, "").strip())
        if not kind:
            return None
        self.kind = self.kind or kind
        if kind != self.kind:
            raise UserError(f"{where}: it has {kind} beside it, while the first picture has {self.kind}")
        self.ids.add(id)
        if annotated:
            silent = "explanations" not in record
            return sample_of(id, record, picture.path, self.labels, silent=silent, where=where)
        emotions = (self._class(texts[".cls"].strip(), where),) if ".cls" in kind else ()
        histogram = one_hot(emotions[0], self.labels) if emotions else None
        text = texts[".txt"].strip() if ".txt" in kind else ""
        return Sample(id, picture.path, (text,), emotions, histogram, language_name(record.get("language")))

    def _class(self, text: str, where: str) -> int:
        """Return the index of a label from a .cls file, which has its name or its number, counted from 0."""
        if text.isascii() and text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        return emotion_index(text, where=f"{where}: .cls", labels=self.labels)

    def _text(self, shard: Shard, place: tuple[int, int], where: str) -> str:
        try:
            return read_beside(shard.path, place).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{where}: not UTF-8 text") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read ({error})") from None
