"""Read ArtEmis (Achlioptas et al., 2021) in SEVLM's JSON files, `artEmisX_train.json` and the like."""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from common.errors import UserError
from data.emotions import EMOTIONS, as_shares, emotion_index, normalize_label
from data.languages import language_name
from data.readers.annotations import (
    collect_faults,
    guess_format,
    image_path,
    kind,
    load_json,
    object_of,
    text_of,
    texts_of,
    wrong_format,
)
from data.samples import Samples
from data.schema import Sample

HISTOGRAM_KEYS = ("origin_emotion_distribution", "image_emotion_distribution")  # the first that is present counts
MAX_VOTES = 1_000_000_000


def read_artemis(
    json_path: Path, visual_dir: Path, *, labels: Sequence[str] | None = EMOTIONS, faults: list[str] | None = None
) -> Samples:
    """Return one sample per image, in the order of the file.

    Every image has `image_name`, `emotions`, and `explanations` of the same length; no image has that key if nobody
    wrote any. The annotators' histogram is counted from the emotions if it is missing. An empty explanation is dropped
    together with its emotion.

    Args:
        visual_dir: the folder that image names are relative to; the images need not exist.
        labels: the emotions in the order of the histograms; None: those in the file, sorted, unless all are EMOTIONS.
        faults: collects the faults of single images, which are then skipped; without it the first is raised.

    Raises:
        UserError: a fault in the file; names the file, the image id and the key.
    """
    data = load_json(json_path)
    if not isinstance(data, dict) or guess_format(data) == "coco":
        raise wrong_format(json_path, data, wanted="artemis")
    if not data:
        raise UserError(f"{json_path}: the annotation file holds no image")
    labels = labels or labels_in(data)
    silent = all(isinstance(entry, dict) and "explanations" not in entry for entry in data.values())

    def samples() -> Iterator[Sample]:
        for id, entry in data.items():
            with collect_faults(faults):
                where = f"{json_path}: image {id!r}"
                name = text_of(object_of(entry, where=where), "image_name", where=where)
                yield sample_of(
                    id, entry, image_path(visual_dir, name, where=where), labels, silent=silent, where=where
                )

    return Samples.pack(samples(), labels)


def labels_in(data: Mapping[str, object]) -> tuple[str, ...]:
    """Return the emotions in an ArtEmis file: EMOTIONS, if there are no others, or their sorted names."""
    lists = (entry.get("emotions") for entry in data.values() if isinstance(entry, dict))
    names = {
        normalize_label(name) for names in lists if isinstance(names, list) for name in names if isinstance(name, str)
    }
    return EMOTIONS if names <= {*EMOTIONS} else tuple(sorted(names))


def image_id(name: str) -> int:
    """Return a painting's id, a 63-bit digest of `Style/painting` (NFC) that is equal on every machine."""
    digest = blake2b(unicodedata.normalize("NFC", name).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def sample_of(
    id: str, record: Mapping[str, object], path: Path, labels: Sequence[str], *, silent: bool, where: str
) -> Sample:
    """Return the sample of an entry with `emotions`, and `explanations` unless `silent`; raises UserError for a fault.

    Args:
        path: of the image; the entry's own image_name is not read.
        where: begins the messages.
    """
    names = texts_of(record, "emotions", where=where)
    texts = [""] * len(names) if silent else texts_of(record, "explanations", where=where)
    explanations = [text.strip() for text in texts]
    if len(names) != len(explanations):
        raise UserError(
            f"{where}: 'emotions' has {len(names)} entries and 'explanations' {len(explanations)}; each explanation "
            "needs its emotion"
        )
    if not names:
        raise UserError(f"{where}: 'emotions' is empty; give it one or leave the image out")
    if not silent and not any(explanations):
        raise UserError(f"{where}: 'explanations' holds no text; give it one or leave the image out")
    emotions = [emotion_index(name, where=f"{where}: 'emotions[{i}]'", labels=labels) for i, name in enumerate(names)]
    kept = [(text, emotion) for text, emotion in zip(explanations, emotions, strict=True) if text or silent]
    return Sample(
        id=id,
        path=path,
        texts=tuple(text for text, _ in kept),
        emotions=tuple(emotion for _, emotion in kept),
        histogram=_histogram(record, emotions, labels, where=where),
        language=language_name(record.get("language")),
    )


def _histogram(
    record: Mapping[str, object], emotions: Sequence[int], labels: Sequence[str], *, where: str
) -> tuple[float, ...]:
    """Return the annotators' share of each label: as given, or counted with the emotions of empty explanations."""
    key = next((key for key in HISTOGRAM_KEYS if record.get(key) is not None), None)
    if key is None:
        votes = Counter(emotions)
        return tuple(votes[i] / len(emotions) for i in range(len(labels)))
    value, count, where = record[key], len(labels), f"{where}: {key!r}"
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of {count} numbers, not {kind(value)}")
    if len(value) != count:
        raise UserError(f"{where} has {len(value)} numbers instead of {count}, one for each emotion")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= MAX_VOTES:
            raise UserError(f"{where} holds {reprlib.repr(number)}, which is not a share or a count of votes")
    total = math.fsum(value)
    if total == 0:
        raise UserError(f"{where} sums to 0; leave the key out to count the listed emotions")
    return as_shares(value, total)
