"""Texts and boxes of visual commonsense reasoning (VCR, visualcommonsense.com) as VLE takes them.

A text is a list of words and of lists of object numbers: [[0, 2], "sit", "down", "."]. Persons get neutral names, and
their tokens, like the patches under their boxes, a token type of the object.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from common.errors import UserError

# fmt: off
NAMES = (  # those of the published code, in its order
    "Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry", "Jody", "Kendall", "Payton", "Skyler",
    "Frankie", "Pat", "Quinn",
)
# fmt: on
NO_OBJECT = -1
MAX_LENGTH = 80  # tokens
FIRST_OBJECT_TYPE = 2  # token types 0 and 1 are text and picture

Words = Sequence[str | Sequence[int]]
Tagged = list[tuple[int, int]]  # token id and object number, or NO_OBJECT


class Choice(NamedTuple):
    """Text of one choice, with [CLS] and [SEP]; `tags` has the object number of each token, or NO_OBJECT."""

    input_ids: list[int]
    tags: list[int]
    objects: list[int]  # mentioned, ascending


def name_objects(objects: Sequence[str], start: int = 0) -> tuple[list[str], int]:
    """Return the words for the objects, and the number of the next name.

    Args:
        objects: classes; each "person" gets the next of NAMES, which begin again after the last.
        start: number of the first name.
    """
    words = []
    for kind in objects:
        words.append(NAMES[start % len(NAMES)] if kind == "person" else kind)
        start += kind == "person"
    return words, start % len(NAMES)


def build_q2a(
    question: Words,
    answers: Sequence[Words],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int = MAX_LENGTH,
) -> list[Choice]:
    """Return "question [SEP] answer" of each answer.

    Of a text that is too long, tokens are taken from the end of the longer part (of two equal ones, the answer). As in
    the published code, the question is cut for one answer and then short in all of them.

    Raises:
        UserError: a text names an object that is not there.
    """
    asked = _tag(question, names, tokenizer)
    tagged = [_tag(answer, names, tokenizer) for answer in answers]
    for answer in tagged:
        while len(asked) + len(answer) > max_length - 3:
            (asked if len(asked) > len(answer) else answer).pop()
    return [_join([asked, answer], tokenizer, max_length) for answer in tagged]


def build_qa2r(
    question: Words,
    answer: Words,
    rationales: Sequence[Words],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int = MAX_LENGTH,
) -> list[Choice]:
    """Return "question [SEP] answer [SEP] rationale" of each rationale; `answer` is the right one.

    Of a text that is too long, tokens are taken from the end of the rationale while it is longer than the rest, then of
    the question down to one token, then of the answer. As in the published code, question and answer are cut for one
    rationale and then short in all of them.

    Raises:
        UserError: a text names an object that is not there.
    """
    asked, answered = _tag(question, names, tokenizer), _tag(answer, names, tokenizer)
    tagged = [_tag(rationale, names, tokenizer) for rationale in rationales]
    for rationale in tagged:
        while len(asked) + len(answered) + len(rationale) > max_length - 4:
            if len(rationale) > len(asked) + len(answered):
                rationale.pop()
            else:
                (asked if len(asked) > 1 else answered).pop()
    return [_join([asked, answered, rationale], tokenizer, max_length) for rationale in tagged]


def patch_range(
    box: Sequence[float],
    size: tuple[float, float],
    grid: int,
    part: tuple[float, float, float, float] | None = None,
) -> list[int]:
    """Return the patches that a box touches, row by row from 0; empty for a box outside the picture.

    Args:
        box: left, top, right, bottom, in pixels; further numbers, as the score of a detector, are ignored.
        size: width and height of the picture, in pixels.
        grid: patches along one side.
        part: left, top, right, bottom of the part of the picture that the grid covers, in pixels; None: the whole
            picture, as published.
    """
    left, top, right, bottom = part or (0.0, 0.0, *size)
    width, height = (right - left) / grid, (bottom - top) / grid
    columns = range(max(int((box[0] - left) // width), 0), min(int((box[2] - left) // width) + 1, grid))
    rows = range(max(int((box[1] - top) // height), 0), min(int((box[3] - top) // height) + 1, grid))
    return [grid * row + column for row in rows for column in columns]


def box_inputs(
    choice: Choice, patches: Mapping[int, Sequence[int]]
) -> tuple[list[Sequence[int]], list[int], list[int]]:
    """Return patches of each box, token type of each box, and token type of each token, for `VLEModel.fuse`.

    The objects of a text have the types 2, 3, …. One without a patch has no box.

    Args:
        patches: of each object.
    """
    types = {number: FIRST_OBJECT_TYPE + rank for rank, number in enumerate(choice.objects)}
    seen = [number for number in choice.objects if patches.get(number)]
    text_types = [types.get(tag, 0) for tag in choice.tags]
    return [patches[number] for number in seen], [types[number] for number in seen], text_types


def _tag(words: Words, names: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Tagged:
    """Return the tokens of each word; a word with a private-use character is left out, as published."""
    flat: list[tuple[str, int]] = []
    for word in words:
        if isinstance(word, str):
            if not any(unicodedata.category(character) == "Co" for character in word):
                flat.append((word, NO_OBJECT))
            continue
        for place, number in enumerate(word):
            if not isinstance(number, int) or not 0 <= number < len(names):
                raise UserError(f"a text names object {number}, and there are {len(names)}, counted from 0")
            flat += [("and", NO_OBJECT)] * (place > 0) + [(names[number], number)]
    if not flat:
        return []
    ids = tokenizer([word for word, _ in flat], add_special_tokens=False)["input_ids"]
    return [(token, number) for (_, number), tokens in zip(flat, ids, strict=True) for token in tokens]


def _join(parts: Sequence[Tagged], tokenizer: PreTrainedTokenizerFast, max_length: int) -> Choice:
    """Return one choice. The tokens are joined to a text and read again, as published; for DeBERTa-v3's vocabulary
    that gives the same tokens, but for unknown characters."""
    ids, tags = [], [NO_OBJECT]
    for number, part in enumerate(parts):
        separator = [(tokenizer.sep_token_id, NO_OBJECT)] * (number > 0)
        ids += [token for token, _ in (*separator, *part)]
        tags += [tag for _, tag in (*separator, *part)]
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    input_ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
    objects = sorted({tag for tag in tags if tag != NO_OBJECT})
    tags = [*tags, *[NO_OBJECT] * len(input_ids)][: len(input_ids)]
    return Choice(input_ids, tags, objects)
