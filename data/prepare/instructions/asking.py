"""Asking a vision-language model what there is to see in each picture, and why it is felt as it is."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from data.images import ImageError
from data.prepare.instructions import answers
from data.prepare.instructions.endpoint import Endpoint, NoAnswer, Refused
from data.prepare.instructions.observation import tidy
from data.prepare.instructions.pictures import data_url
from data.prepare.instructions.threads import in_threads
from data.prepare.instructions.wording import OBSERVATION, REASONING, listed
from data.prepare.instructions.words import class_words
from errors import UserError
from progress import progress

if TYPE_CHECKING:
    from data.prepare.instructions.command import Part

MOST_FAILURES = 3  # pictures in a row without an answer, after which the server is taken to be away
MOST_REFUSALS = 10  # in a row, after which it is not the pictures that the server minds
LONGEST = 4000  # characters of a text
NAMES_IT = "the model names the emotion"
MALFORMED = "the model's answer has another form"
REFUSED = "the model refuses to answer"
NO_IMAGE = "the image cannot be opened"

SYSTEM = "You describe pictures for a study of what people feel before them. You say only what the picture bears out."
TASK = (
    'People who looked at this picture mostly put their feeling under "{label}" (out of: {labels}). Write two texts '
    'of one to three plain sentences. "observation" tells what in the picture matters for that: figures, faces and '
    'gestures, objects, colours, light, brushwork, composition. "reasoning" tells how these bring a viewer to feel so. '
    "Neither of them may contain {words} or any other form of the category's name; let the reader infer it. "
    'Answer with a JSON object that has the two keys "observation" and "reasoning", each with its text, and with '
    "nothing else."
)
AGAIN = {
    NAMES_IT: (
        'Your answer contains "{word}", which gives the category away. Write both texts again without any form of that '
        "word, as a JSON object with the same two keys."
    ),
    MALFORMED: (
        'Your answer could not be read. Give one JSON object with exactly the keys "observation" and "reasoning", each '
        "with a text, and nothing before or after it."
    ),
}


class Task(NamedTuple):
    id: str
    path: Path
    label: str


def answers_of(
    part: Part, asked: Sequence[tuple[int, str]], arguments: argparse.Namespace, *, max_pixels: int
) -> tuple[dict[str, dict], dict[str, Any]]:
    """The answers about some images of a split, by id, and what the manifest says of them.

    Those of an earlier run are taken from its file; every new one is written there as it comes.

    Args:
        asked: row of the samples, label.

    Raises:
        UserError: the endpoint cannot be used at all, or answers no more; what was answered is kept.
    """
    labels = part.samples.labels
    endpoint = Endpoint(
        arguments.endpoint,
        model=arguments.model,
        timeout=arguments.timeout,
        retries=arguments.retries,
        allow_http=arguments.allow_http,
    )
    settings = {"endpoint": endpoint.shown, **_settings(arguments, labels)}
    tasks = {part.samples[row].id: Task(part.samples[row].id, part.samples.path(row), label) for row, label in asked}
    path = arguments.out / f"answers_{part.name}.jsonl"
    known = answers.read(path, settings)
    done = {id: known[id] for id, task in tasks.items() if id in known and known[id]["label"] == task.label}
    endpoint.answered = any("dropped" not in row for row in done.values())
    with (
        answers.begin(path, settings, known) as record,
        progress(len(tasks), f"asking about {part.name}", unit="image", initial=len(done)) as bar,
    ):
        missing = [task for id, task in tasks.items() if id not in done]
        book = _Book(done, record, bar)
        picture = {"max_side": arguments.max_side, "max_pixels": max_pixels}
        asker = _Asker(endpoint, labels, tries=arguments.tries, max_tokens=arguments.max_tokens, picture=picture)
        for _, (row, reason) in in_threads(asker.ask, missing, threads=arguments.parallel, stop=endpoint.stop):
            book.enter(row, reason)
        book.settle()
    return done, {"model": settings, "usage": _total(row["usage"] for row in done.values())}


def _settings(arguments: argparse.Namespace, labels: Sequence[str]) -> dict[str, Any]:
    """What answers depend on, besides the picture and who is asked."""
    words = [form for label in labels for form in (label, *class_words(label).forms)]
    wording = sha256("\0".join((SYSTEM, TASK, *AGAIN.values(), *words)).encode()).hexdigest()[:16]
    return {key: getattr(arguments, key) for key in ("model", "max_side", "max_tokens", "tries")} | {"wording": wording}


class _Book:
    """Keeps the answers as they come, and sees when none come any more."""

    def __init__(self, done: dict[str, dict], record: IO[str], bar: tqdm) -> None:
        self._done = done
        self._record = record
        self._bar = bar
        self._refused: list[dict] = []  # since the last answer; not kept before there is another one
        self._failures = 0
        self._used: Counter = Counter()

    def enter(self, row: dict | None, reason: str) -> None:
        """Raises UserError where it is of no use to go on."""
        if row is None:
            self._failures += 1
        elif row.get("dropped") == REFUSED:
            self._refused.append(row)
        else:
            self.settle()
            self._keep(row)
        if self._failures >= MOST_FAILURES or len(self._refused) >= MOST_REFUSALS:
            raise UserError(
                f"{reason}, for {max(self._failures, len(self._refused))} pictures in a row; {len(self._done):,} "
                "answers are kept, and the same command goes on from there"
            )

    def settle(self) -> None:
        for row in self._refused:
            self._keep(row)
        self._refused, self._failures = [], 0

    def _keep(self, row: dict) -> None:
        answers.add(self._record, row)
        self._done[row["id"]] = row
        self._used.update(row["usage"])
        self._bar.set_postfix_str(_used(self._used), refresh=False)
        self._bar.update()


def _used(used: Mapping[str, float]) -> str:
    names = {"tokens_asked": "in", "tokens_answered": "out"}
    tokens = " + ".join(f"{used[key]:,.0f} {word}" for key, word in names.items() if used[key])
    return f"{tokens} tokens" * bool(tokens) + f", cost {used['cost']:.4g}" * bool(used["cost"])


def _total(usages: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter = Counter()
    for usage in usages:
        total.update(usage)
    return {key: round(total[key], 9) for key in sorted(total)}


# --- one picture ------------------------------------------------------------------------------------------------------


class _Asker:
    """Asks about one picture at a time; may be used by several threads."""

    def __init__(
        self, endpoint: Endpoint, labels: Sequence[str], *, tries: int, max_tokens: int, picture: Mapping[str, int]
    ) -> None:
        self._endpoint = endpoint
        self._labels = labels
        self._tries = tries
        self._max_tokens = max_tokens
        self._picture = picture  # settings of `data_url`

    def ask(self, task: Task) -> tuple[dict | None, str]:
        """The row of a picture; and, if there is none or it was refused, what the server says."""
        row: dict[str, Any] = {"id": task.id, "label": task.label}
        used: Counter = Counter()
        try:
            first = _question(task, self._labels, data_url(task.path, **self._picture))
        except (ImageError, OSError):
            return {**row, "dropped": NO_IMAGE, "usage": {}}, ""
        messages = first
        problem = ""
        for _ in range(self._tries):
            try:
                reply = self._endpoint.complete(messages, max_tokens=self._max_tokens)
            except Refused as error:
                return {**row, "dropped": REFUSED, "usage": dict(used)}, str(error)
            except NoAnswer as error:
                return None, str(error)
            used.update(reply.usage)
            problem, found = judged(reply.text, task.label)
            if not problem:
                return {**row, **found, "usage": dict(used)}, ""
            messages = [*first, _turn("assistant", reply.text or "-"), _turn("user", AGAIN[problem].format(word=found))]
        return {**row, "dropped": problem, "usage": dict(used)}, ""


def _question(task: Task, labels: Sequence[str], picture: str) -> list[dict]:
    words = ", ".join(f'"{form}"' for form in class_words(task.label).forms)
    text = TASK.format(label=task.label, labels=listed(labels), words=words)
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
    return [_turn("system", SYSTEM), _turn("user", parts)]


def _turn(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def judged(text: str, label: str) -> tuple[str, Any]:
    """("", both texts) of a usable answer, else what is wrong with it and the word that gives the class away."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        pairs = json.loads(fenced[1] if fenced else text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return MALFORMED, ""
    is_object = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
    if not is_object or sorted(key for key, _ in pairs) != [OBSERVATION, REASONING]:
        return MALFORMED, ""
    if not all(isinstance(value, str) and len(value) <= LONGEST for _, value in pairs):
        return MALFORMED, ""
    found = {key: tidy(value) for key, value in pairs}
    if not all(text and text.isprintable() for text in found.values()):
        return MALFORMED, ""
    word = next(filter(None, map(class_words(label).named_in, found.values())), None)
    return (NAMES_IT, word) if word else ("", found)
