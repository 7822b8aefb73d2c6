"""Read word vectors in GloVe's format: a text file with a word and its numbers on each line."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.reading import require_file

LARGEST = 1 << 34  # bytes; GloVe's largest file has 6 GB


def read_vectors(path: Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """Return the float32 vectors, all of one length, of those of `words` that are in the file.

    Raises:
        UserError: the file cannot be read, a line is not a vector, or none of the words is in it.
    """
    wanted, found, size = frozenset(words), {}, 0
    try:
        require_file(path, largest=LARGEST)
        with path.open(encoding="utf-8", newline="\n") as lines:  # some words of GloVe hold other line ends
            for number, line in enumerate(lines, start=1):
                fields = line.split()
                if number == 1 and len(fields) == 2:  # word2vec's header: number of words, length of a vector
                    continue
                size = size or len(fields) - 1
                if size > 0 and line.split(" ", 1)[0] in wanted and len(fields) == size + 1:
                    found[fields[0]] = _vector(fields[1:], f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"the word vectors {path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise UserError(f"the word vectors {path} are not UTF-8; unpack the archive and give glove.*.txt") from None
    if not found:
        raise UserError(f"{path} has none of the {len(wanted)} words; give a file such as glove.6B.100d.txt")
    return found


def _vector(numbers: list[str], where: str) -> np.ndarray:
    try:
        vector = np.array([float(number) for number in numbers], dtype=np.float32)
    except ValueError:
        raise UserError(f"{where}: expected a word and {len(numbers)} numbers") from None
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: the vector holds NaN or infinity")
    return vector
