"""Observation and reasoning for each picture, written by a vision-language model."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from common.endpoint import Endpoint, Refused, Reply
from common.errors import UserError
from common.files import write_text
from data.images import ImageError
from data.prepare.instructions.class_words import class_words
from data.prepare.instructions.collect import (
    collect,
    data_url,
    open_endpoint,
    read_lines,
    require_same_settings,
    to_line,
    total_usage,
)
from data.prepare.instructions.conversations import OBSERVATION, REASONING, listed, text_part, turn
from data.prepare.instructions.observation import tidy
from data.readers.annotations import read_text

LONGEST = 4000  # characters of a text
NAMES_IT = "the model names the emotion"
MALFORMED = "the model's answer has another form"
CUT_OFF = "the model's answer is cut off; give a larger --max-tokens"
EMPTY = "the model's answer has no text"
REFUSED = "the model refuses to answer"
NO_IMAGE = "the image cannot be opened"

SYSTEM = "You describe pictures for a study of what people feel before them. You say only what the picture bears out."
TASK = (
    'People who looked at this picture mostly put their feeling under "{label}" (out of: {labels}). Write two texts '
    'of one to three plain sentences. "observation" tells what in the picture matters for that: figures, faces and '
    'gestures, objects, colours, light, brushwork, composition. "reasoning" tells how these bring a viewer to feel so. '
    "Neither of them may contain {words} or any other form of the category's name; let the reader infer it."
)
PLACEHOLDERS = ("label", "labels", "words")
FORM = (
    ' Answer with a JSON object that has the two keys "observation" and "reasoning", each with its text, and with '
    "nothing else."
)
NAMED_AGAIN = (
    'Your answer contains "{word}", which gives the category away. Write both texts again without any form of that '
    "word, as a JSON object with the same two keys."
)
UNREADABLE = (
    'Your answer could not be read. Give one JSON object with exactly the keys "observation" and "reasoning", each '
    "with a text, and nothing before or after it."
)


class Task(NamedTuple):
    """A picture and its dominant emotion."""

    id: str
    path: Path
    label: str


def answers_of(
    tasks: Sequence[Task], path: Path, arguments: argparse.Namespace, labels: Sequence[str], *, max_pixels: int
) -> tuple[dict[str, dict], dict[str, Any]]:
    """Return the answers about the pictures, by image id, and the manifest's entries about the model.

    Args:
        path: JSON lines, first the settings and then the answers. Answers in it are reused, new ones are appended.
        max_pixels: of the largest picture that is decoded.

    Raises:
        UserError: the endpoint or --prompt_file cannot be used, or `path` holds answers of other settings. Answers so
            far are kept.
    """
    prompt = (TASK if arguments.prompt_file is None else read_prompt(arguments.prompt_file)) + FORM
    endpoint = open_endpoint(arguments, as_json=True)
    words = [form for label in labels for form in (label, *class_words(label).forms)]
    wording = sha256("\0".join((SYSTEM, prompt, NAMED_AGAIN, UNREADABLE, *words)).encode()).hexdigest()[:16]
    options = {key: getattr(arguments, key) for key in ("model", "max_side", "max_tokens", "tries")}
    settings = {"endpoint": endpoint.shown, **options, "wording": wording}  # what the answers depend on
    known = _read(path, settings)
    done = {task.id: known[task.id] for task in tasks if known.get(task.id, {}).get("label") == task.label}
    write_text(path, map(to_line, ({"settings": settings}, *known.values())))  # without a line that was cut off
    row_of = partial(_row, prompt=prompt, endpoint=endpoint, arguments=arguments, labels=labels, max_pixels=max_pixels)
    collect(tasks, row_of, path, done, endpoint=endpoint, parallel=arguments.parallel)
    return done, {"model": settings, "usage": total_usage([*done.values()])}


def read_prompt(path: Path) -> str:
    """Return the user's wording in place of TASK.

    Raises:
        UserError: it cannot be read, has an unknown placeholder, or lacks {label}.
    """
    prompt = read_text(path, what="file of --prompt_file").strip()
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        found = {name for _, name, *_ in Formatter().parse(prompt) if name is not None}
        prompt.format(**dict.fromkeys(PLACEHOLDERS, ""))
    except (ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"--prompt_file {path}: the placeholders are {known}, and any other brace is written twice ({error})"
        ) from None
    if "label" not in found:
        raise UserError(f"--prompt_file {path}: the placeholder {{label}}, the emotion of the picture, is missing")
    return prompt


async def _row(
    task: Task, prompt: str, endpoint: Endpoint, arguments: argparse.Namespace, labels: Sequence[str], max_pixels: int
) -> dict[str, Any]:
    """Return the answer about a picture, with both texts or with the reason why it is dropped."""
    row: dict[str, Any] = {"id": task.id, "label": task.label}
    try:
        picture = data_url(task.path, max_side=arguments.max_side, max_pixels=max_pixels)
    except (ImageError, OSError):
        return {**row, "dropped": NO_IMAGE, "usage": {}}
    words = ", ".join(f'"{form}"' for form in class_words(task.label).forms)
    text = prompt.format(label=task.label, labels=listed(labels), words=words)
    parts = [{"type": "image_url", "image_url": {"url": picture}}, text_part(text)]
    messages = question = [turn("system", SYSTEM), turn("user", parts)]
    usage: Counter = Counter()
    for _ in range(arguments.tries):
        try:
            reply = await endpoint.complete(messages)
        except Refused:
            problem = REFUSED
            break
        usage.update(reply.usage)
        problem, found = judged(reply, task.label)
        if not problem:
            return {**row, **found, "usage": dict(usage)}
        again = NAMED_AGAIN.format(word=found) if problem == NAMES_IT else UNREADABLE
        messages = [*question, turn("assistant", reply.text or "-"), turn("user", again)]
    return {**row, "dropped": problem, "usage": dict(usage)}


def judged(reply: Reply, label: str) -> tuple[str, Any]:
    """Return ("", both texts) for a usable reply, otherwise the problem and the word that names the class."""
    if reply.cut_off or not reply.text.strip():
        return (CUT_OFF if reply.cut_off else EMPTY), ""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", reply.text, re.DOTALL)
    try:
        pairs = json.loads(fenced[1] if fenced else reply.text, object_pairs_hook=tuple)
        found = {key: tidy(value) for key, value in pairs if len(value) <= LONGEST}
    except (ValueError, TypeError, RecursionError):  # not JSON, or not an object of texts
        return MALFORMED, ""
    complete = isinstance(pairs, tuple) and len(pairs) == 2 and found.keys() == {OBSERVATION, REASONING}
    if not complete or not all(text and text.isprintable() for text in found.values()):
        return MALFORMED, ""
    word = next(filter(None, map(class_words(label).named_in, found.values())), None)
    return (NAMES_IT, word) if word else ("", found)


def _read(path: Path, settings: dict[str, Any]) -> dict[str, dict]:
    """Return the answers in a file, by image id, without damaged lines; none if there is no file.

    Raises:
        UserError: they were given under other settings, or the file is not one of this command's.
    """
    first, *rows = read_lines(path) or [{"settings": settings}]
    require_same_settings(first.get("settings"), settings, path)
    whole = ({"id", "label", "usage", "dropped"}, {"id", "label", "usage", OBSERVATION, REASONING})
    return {row["id"]: row for row in rows if row.keys() in whole}
