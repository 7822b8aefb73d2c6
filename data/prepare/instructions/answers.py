"""Observation and reasoning for each picture, written by a vision-language model."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from common.endpoint import Endpoint, Failed, Refused, Reply, Words
from common.errors import UserError
from common.files import to_json, write_text
from common.progress import progress
from data.images import ImageError, open_image
from data.prepare.instructions.class_words import class_words
from data.prepare.instructions.conversations import OBSERVATION, REASONING, listed, turn
from data.prepare.instructions.observation import tidy

MOST_FAILURES = 10  # in a row, after which the run ends
LONGEST = 4000  # characters of a text
NAMES_IT = "the model names the emotion"
MALFORMED = "the model's answer has another form"
CUT_OFF = "the model's answer is cut off; give a larger --max-tokens"
EMPTY = "the model's answer has no text"
REFUSED = "the model refuses to answer"
NO_IMAGE = "the image cannot be opened"
WORDS = Words(
    endpoint="--endpoint",
    model="--model",
    sent="pictures",
    encrypted="use https or --allow-http",
    too_large="the pictures are too large for the server; give a smaller --max-side",
    rejected="check that {model} accepts pictures",
)

SYSTEM = "You describe pictures for a study of what people feel before them. You say only what the picture bears out."
TASK = (
    'People who looked at this picture mostly put their feeling under "{label}" (out of: {labels}). Write two texts '
    'of one to three plain sentences. "observation" tells what in the picture matters for that: figures, faces and '
    'gestures, objects, colours, light, brushwork, composition. "reasoning" tells how these bring a viewer to feel so. '
    "Neither of them may contain {words} or any other form of the category's name; let the reader infer it. "
    'Answer with a JSON object that has the two keys "observation" and "reasoning", each with its text, and with '
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
        UserError: the endpoint cannot be used, or `path` holds answers of other settings. Answers so far are kept.
    """
    endpoint = Endpoint(
        arguments.endpoint, model=arguments.model, timeout=arguments.timeout, retries=arguments.retries,
        max_tokens=arguments.max_tokens, allow_http=arguments.allow_http, words=WORDS, as_json=True,
    )  # fmt: skip
    words = [form for label in labels for form in (label, *class_words(label).forms)]
    wording = sha256("\0".join((SYSTEM, TASK, NAMED_AGAIN, UNREADABLE, *words)).encode()).hexdigest()[:16]
    options = {key: getattr(arguments, key) for key in ("model", "max_side", "max_tokens", "tries")}
    settings = {"endpoint": endpoint.shown, **options, "wording": wording}  # what the answers depend on
    known = _read(path, settings)
    done = {task.id: known[task.id] for task in tasks if known.get(task.id, {}).get("label") == task.label}
    write_text(path, map(_line, ({"settings": settings}, *known.values())))  # without a line that was cut off
    used: Counter = Counter()
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        progress(len(tasks), path.stem, unit="image", initial=len(done)) as bar,
    ):

        def keep(row: dict) -> None:
            file.write(_line(row))
            done[row["id"]] = row
            used.update(row["usage"])
            bar.set_postfix(used, refresh=False)
            bar.update()

        row_of = partial(_row, endpoint=endpoint, arguments=arguments, labels=labels, max_pixels=max_pixels)
        missing = iter([task for task in tasks if task.id not in done])
        asyncio.run(_answer_all(missing, row_of, keep, endpoint, done, arguments.parallel))
    total: Counter = sum((Counter(row["usage"]) for row in done.values()), Counter())
    return done, {"model": settings, "usage": {key: round(total[key], 9) for key in sorted(total)}}


async def _answer_all(
    tasks: Iterator[Task], row_of: Callable, keep: Callable, endpoint: Endpoint, done: dict, parallel: int
) -> None:
    """Pass the row of each task to `keep` as it comes; tasks that failed have none.

    Coroutines and not threads: Ctrl-C cancels the requests that are under way instead of waiting for them.
    """
    failures = 0

    async def work() -> None:
        nonlocal failures
        for task in tasks:
            try:
                keep(await row_of(task))
                failures = 0
            except Failed as error:
                failures += 1
                if not done or failures >= MOST_FAILURES:
                    kept = f"; {len(done):,} answers are kept, run the same command again to continue" if done else ""
                    raise UserError(f"{error}{kept}") from None

    async with endpoint.client:
        await asyncio.gather(*(work() for _ in range(parallel)))


async def _row(
    task: Task, endpoint: Endpoint, arguments: argparse.Namespace, labels: Sequence[str], max_pixels: int
) -> dict[str, Any]:
    """Return the answer about a picture, with both texts or with the reason why it is dropped."""
    row: dict[str, Any] = {"id": task.id, "label": task.label}
    try:
        picture = data_url(task.path, max_side=arguments.max_side, max_pixels=max_pixels)
    except (ImageError, OSError):
        return {**row, "dropped": NO_IMAGE, "usage": {}}
    words = ", ".join(f'"{form}"' for form in class_words(task.label).forms)
    text = TASK.format(label=task.label, labels=listed(labels), words=words)
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
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


def data_url(path: Path, *, max_side: int, max_pixels: int) -> str:
    """Return a picture as a data: URL of a JPEG whose sides are at most `max_side` pixels, without metadata.

    Raises:
        ImageError, OSError: the picture cannot be opened.
    """
    picture = open_image(path, max_pixels=max_pixels)
    picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling="4:4:4")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


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
    try:
        first, *rows = map(_parsed, path.read_text(encoding="utf-8", errors="replace").split("\n"))
    except FileNotFoundError:
        return {}
    before = first.get("settings")
    if not isinstance(before, dict):
        raise UserError(f"{path} does not contain answers of this command; give another folder as --out")
    for key, value in settings.items():
        if before.get(key) != value:
            raise UserError(
                f"{path} contains answers for another {key} ({str(before.get(key))[:80]}, now {value}); use that one, "
                "or give another folder as --out"
            )
    whole = ({"id", "label", "usage", "dropped"}, {"id", "label", "usage", OBSERVATION, REASONING})
    return {row["id"]: row for row in rows if row.keys() in whole}


def _parsed(line: str) -> dict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _line(value: dict[str, Any]) -> str:
    return to_json(value, ensure_ascii=True)  # ASCII: an id may contain bytes that are not characters
