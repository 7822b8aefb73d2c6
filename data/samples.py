"""A compact sequence of samples, stored in a few arrays.

A Python object per text of 100,000 images would take hundreds of megabytes, and each worker process would copy the
memory pages that it reads, because reading an object changes its reference count.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data.emotions import EMOTIONS
from data.schema import Ratings, Sample

NO_EMOTION = -1


class _Strings(Sequence[bytes]):
    """Concatenated byte strings."""

    def __init__(self, strings: Iterable[bytes] = ()) -> None:
        joined, ends = bytearray(), array("q", [0])
        for string in strings:
            joined += string
            ends.append(len(joined))
        self.joined = np.frombuffer(bytes(joined), dtype=np.uint8)
        self.ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.joined[self.ends[row] : self.ends[row + 1]].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Sequence[Sample]):
    """An immutable sequence of samples; indexing creates the Sample."""

    ids: _Strings
    paths: _Strings
    path_rows: np.ndarray  # (N,) row of `paths` of each sample
    texts: _Strings
    text_ends: np.ndarray  # (N + 1,)
    emotions: np.ndarray  # one per text, or NO_EMOTION
    histograms: np.ndarray  # (N, C), NaN if missing
    labels: tuple[str, ...] = EMOTIONS  # names of the C emotions
    languages: _Strings = field(default_factory=_Strings)  # one per sample, or none if no sample names its language
    ratings: np.ndarray = field(default_factory=lambda: np.empty((0, 5)))  # (N, 5), or (0, 5) if no sample is rated

    @classmethod
    def pack(cls, samples: Iterable[Sample], labels: Sequence[str] = EMOTIONS) -> Samples:
        ids, paths, texts, text_ends, emotions, histograms = [], [], [], array("q", [0]), array("b"), array("d")
        languages, ratings, unrated = [], array("d"), [np.nan] * len(Ratings._fields)
        for sample in samples:
            ids.append(sample.id.encode("utf-8", "surrogatepass"))
            paths.append(os.fsencode(sample.path))
            texts += [text.encode() for text in sample.texts]
            text_ends.append(len(texts))
            languages.append(sample.language.encode())
            emotions.extend(sample.emotions or [NO_EMOTION] * len(sample.texts))
            histograms.extend(sample.histogram or [np.nan] * len(labels))
            ratings.extend(sample.ratings or unrated)
        return cls(
            ids=_Strings(ids),
            paths=_Strings(paths),
            path_rows=np.arange(len(paths)),
            texts=_Strings(texts),
            text_ends=np.array(text_ends, dtype=np.int64),
            emotions=np.array(emotions, dtype=np.int8),
            histograms=np.array(histograms, dtype=np.float64).reshape(-1, len(labels)),
            labels=tuple(labels),
            languages=_Strings(languages if any(languages) else ()),
            ratings=_rated(np.array(ratings, dtype=np.float64).reshape(-1, len(unrated))),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        if isinstance(index, slice):
            return self.pick(range(len(self))[index])
        index = range(len(self))[index]  # accepts negative ones, raises IndexError
        texts = range(self.text_ends[index], self.text_ends[index + 1])
        emotions = self.emotions[texts.start : texts.stop].tolist()
        histogram = self.histograms[index].tolist()
        return Sample(
            id=self.ids[index].decode("utf-8", "surrogatepass"),
            path=self.path(index),
            texts=tuple(self.texts[row].decode() for row in texts),
            emotions=() if NO_EMOTION in emotions else tuple(emotions),
            histogram=None if np.isnan(histogram[0]) else tuple(histogram),
            language=self.languages[index].decode() if len(self.languages) else "",
            ratings=self._ratings(index),
        )

    def _ratings(self, index: int) -> Ratings | None:
        if not len(self.ratings) or np.isnan(self.ratings[index, 0]):
            return None
        return Ratings(*self.ratings[index].tolist())

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def pick(self, rows: Iterable[int]) -> Samples:
        """Return the samples of these rows, in this order."""
        return Samples.pack((self[row] for row in rows), self.labels)

    def path(self, index: int) -> Path:
        """Return the image path of one sample, without creating the Sample."""
        return Path(os.fsdecode(self.paths[self.path_rows[index]]))

    @property
    def has_emotions(self) -> bool:
        return bool((self.emotions != NO_EMOTION).any())

    @property
    def has_texts(self) -> bool:
        """True if any sample has an explanation or caption."""
        return any(text.strip() for text in self.texts)

    @property
    def language_names(self) -> list[str]:
        """Return the names of the languages of the texts, sorted; none if no sample names its language."""
        return sorted({name.decode() for name in self.languages} - {""})

    def without_texts(self) -> Samples:
        """Return the same images and emotions with empty texts."""
        return replace(self, texts=_Strings([b""] * len(self.texts)))

    def without_emotions(self) -> Samples:
        """Return the same images and texts without emotions."""
        emotions, histograms = np.full_like(self.emotions, NO_EMOTION), np.full_like(self.histograms, np.nan)
        return replace(self, emotions=emotions, histograms=histograms)

    def with_images_of(self, rows: Sequence[int]) -> Samples:
        """Return samples in which sample i has the image of sample rows[i]."""
        return replace(self, path_rows=self.path_rows[np.asarray(rows, dtype=np.int64)])


def _rated(ratings: np.ndarray) -> np.ndarray:
    return ratings[:0] if np.isnan(ratings).all() else ratings
