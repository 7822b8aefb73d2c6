"""`python -m trainer.score ask`: predictions of a model behind an OpenAI-compatible endpoint, and their scores.

Two requests for each picture: which of the labels, answered by the label alone, so that the probabilities of its first
tokens are those of the labels; then, in the same conversation, the reason.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from common.endpoint import Endpoint, Refused, Reply
from common.errors import UserError
from common.files import write_json, write_text
from data.emotions import label_set, labels_entry, labels_of
from data.images import MAX_PIXELS, ImageError
from data.prepare.export import read_manifest
from data.prepare.instructions.collect import (
    Row,
    check_options,
    collect,
    data_url,
    open_endpoint,
    read_lines,
    require_same_settings,
    reserved,
    to_line,
    total_usage,
)
from data.prepare.instructions.conversations import because, listed, text_part, turn
from data.prepare.instructions.observation import tidy, without_class
from data.readers.annotations import read_text
from data.readers.resolver import ImageFolder
from trainer.score.commands import check_out, picture_of, read_references_of, score
from trainer.score.label_shares import label_of, label_shares
from trainer.score.predictions import Texts

EMOTION = (
    "Which emotion does this picture evoke in most people who look at it? Answer with one of these labels and nothing "
    "else: {labels}."
)
REASON = (
    "Why? Give the reason in one sentence that names what in the picture leads to this emotion. Write only what would "
    'follow "because".'
)
MADE_BY = "python -m trainer.score ask"
NO_ANSWER = {"emotion": None, "emotion_distribution": None, "explanation": "", "answer": None}
NO_ANSWER |= {"refused": False, "leak": False, "cut_off": False}
NAMED = 20  # answers and pictures that ask.json lists of each kind


class Task(NamedTuple):
    id: str
    path: Path


def ask(arguments: argparse.Namespace) -> int:
    """Request what is missing, write predictions.jsonl and ask.json, and score; return the exit status.

    Raises:
        UserError: options, files, the output folder or the endpoint cannot be used; answers so far are kept.
    """
    if missing := [name for name in ("references", "images", "out") if getattr(arguments, name) is None]:
        raise UserError(f"ask needs --{missing[0]}")
    check_options(arguments)
    check_out(arguments.out)
    references = read_references_of(arguments)
    labels = _labels(arguments, references)
    ids, unknown = _chosen(references, arguments.names)
    tasks, unopened = _tasks(references, ids[: arguments.limit], arguments.images), []
    out = arguments.out
    with reserved(out, purpose="asking a model about pictures"):
        endpoint = open_endpoint(arguments)
        settings = _settings(arguments, endpoint, labels)
        known = _earlier(out, settings)
        done = {task.id: known[task.id] for task in tasks if task.id in known}
        row_of = partial(_row, endpoint=endpoint, labels=labels, max_side=arguments.max_side, unopened=unopened)
        try:
            collect(tasks, row_of, out / "predictions.jsonl", done, endpoint=endpoint, parallel=arguments.parallel)
        finally:
            counts = _counts([*done.values()], len(tasks), unopened, unknown)
            write_json(out / "ask.json", {"made_by": MADE_BY, "settings": settings, **counts})
    print(_summary(counts, out))
    if not done:
        raise UserError(f"--images {arguments.images}: no picture can be opened, such as {tasks[0].path}")
    arguments.predictions, arguments.images, arguments.subset = out / "predictions.jsonl", None, True
    score(arguments, references=references, only=done)
    return 1 if counts["no_answer"] else 0


def _labels(arguments: argparse.Namespace, references: Texts) -> tuple[str, ...]:
    """Return the labels of the references; those of --labels for references without emotions."""
    row = next(iter(references.rows.values()))
    given = arguments.labels and label_set(arguments.labels, where="--labels")
    if given and row.get("histogram") and given != labels_of(row):
        raise UserError(f"--labels: {references.path} has the emotions {', '.join(labels_of(row))}; leave it out")
    return given or labels_of(row)


def _chosen(references: Texts, names: Path | None) -> tuple[list[str], list[str]]:
    """Return the ids of the pictures in the file of names, of all without a file, and the names that are none of them.

    A name is an id, or the path, file name or stem of a picture. The file has one in each line, or is a JSON list.
    """
    if names is None:
        return [*references.rows], []
    text = read_text(names, what="file of --names").strip()
    try:
        wanted = json.loads(text) if text.startswith("[") else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise UserError(f"--names {names}: not JSON that can be read: {error}") from None
    wanted = [*dict.fromkeys(str(name) for name in wanted if name)]
    ids: dict[str, set[str]] = {}
    for id, row in references.rows.items():
        path = Path(row.get("image_name") or row.get("image") or id)
        for name in {id, path.as_posix(), path.name, path.stem}:
            ids.setdefault(name, set()).add(id)
    found = {name: {name} if name in references.rows else ids.get(name, set()) for name in wanted}
    unknown = [name for name, matches in found.items() if len(matches) != 1]
    if len(unknown) == len(wanted):
        first = next(iter(references.rows))
        raise UserError(f"--names {names}: no name is that of one picture in {references.path}, such as {first!r}")
    return [*dict.fromkeys(min(matches) for matches in found.values() if len(matches) == 1)], unknown


def _tasks(references: Texts, ids: Sequence[str], images: Path) -> list[Task]:
    """Return the pictures, which need not exist."""
    folder, tasks = ImageFolder(images), []
    for id in ids:
        row = references.rows[id]
        named = row.get("image_name") or (None if row.get("image") else id)
        tasks.append(Task(id, folder.find(named).path if named else picture_of(images, {"id": id, **row})))
    return tasks


def _settings(arguments: argparse.Namespace, endpoint: Endpoint, labels: Sequence[str]) -> dict[str, Any]:
    """Return what the answers depend on."""
    return {
        "endpoint": endpoint.shown,
        "model": arguments.model,
        "max_side": arguments.max_side,
        "max_tokens": arguments.max_tokens,
        "labels": list(labels),
        "wording": sha256(f"{EMOTION}\0{REASON}".encode()).hexdigest()[:16],
    }


def _earlier(out: Path, settings: dict[str, Any]) -> dict[str, Row]:
    """Return the rows of an interrupted run by id, and prepare the files for further ones.

    Raises:
        UserError: they have other settings, or were not made by this command.
    """
    about, path = out / "ask.json", out / "predictions.jsonl"
    if path.exists() or about.exists():
        require_same_settings((read_manifest(about, MADE_BY) or {}).get("settings"), settings, about)
    known = {row["id"]: row for row in read_lines(path) if row.keys() >= {"id", "usage", *NO_ANSWER}}
    write_json(about, {"made_by": MADE_BY, "settings": settings})
    write_text(path, map(to_line, known.values()))  # without a line that was cut off
    return known


async def _row(
    task: Task, *, endpoint: Endpoint, labels: Sequence[str], max_side: int, unopened: list[str]
) -> Row | None:
    """Return the row of predictions.jsonl about a picture; None if it cannot be opened, which `unopened` collects."""
    try:
        picture = data_url(task.path, max_side=max_side, max_pixels=MAX_PIXELS)
    except (ImageError, OSError):
        unopened.append(str(task.path))
        return None
    row: Row = {"id": task.id, "image": str(task.path), **labels_entry(labels), **NO_ANSWER}
    parts = [{"type": "image_url", "image_url": {"url": picture}}, text_part(EMOTION.format(labels=listed(labels)))]
    messages = [turn("user", parts)]
    usage: Counter = Counter()
    try:
        reply = await endpoint.complete(messages, logprobs=True)
        usage.update(reply.usage)
        row |= _emotion(reply, labels)
        messages += [turn("assistant", row["answer"] or "-"), turn("user", REASON)]
        reply = await endpoint.complete(messages)
        usage.update(reply.usage)
        row |= _explanation(reply, row["emotion"]) | {"cut_off": reply.cut_off or row["cut_off"]}
    except Refused:
        row["refused"] = True
    return {**row, "usage": dict(usage)}


def _emotion(reply: Reply, labels: Sequence[str]) -> Row:
    answer = _without_thoughts(reply.text)
    emotion, shares = label_of(answer, labels), label_shares(reply.tokens, labels)
    shares = [round(share, 6) for share in shares] if emotion and shares else None
    return {"answer": answer, "emotion": emotion, "emotion_distribution": shares, "cut_off": reply.cut_off}


def _explanation(reply: Reply, emotion: str | None) -> Row:
    """Return the reason without "because" and what precedes it, and whether it says nothing but the emotion."""
    text = tidy(_without_thoughts(reply.text))
    leak = not text or (emotion is not None and without_class(text, emotion) is None)
    explanation = because(text, emotion).removeprefix("because ") if text else ""
    return {"explanation": explanation, "leak": leak}


def _without_thoughts(text: str) -> str:
    """Return an answer without the thoughts that some servers send before it."""
    return text.rpartition("</think>")[2].strip()


def _counts(rows: Sequence[Row], pictures: int, unopened: Sequence[str], unknown: Sequence[str]) -> dict[str, Any]:
    other = Counter(row["answer"] for row in rows if row["answer"] is not None and row["emotion"] is None)
    return {
        "pictures": pictures,
        "answered": len(rows),
        "with_probabilities": sum(row["emotion_distribution"] is not None for row in rows),
        "usage": total_usage(rows),
        "refused": _first([row["id"] for row in rows if row["refused"]]),
        "no_label": {"count": other.total(), "answers": dict(other.most_common(NAMED))},
        "leaks": _first([row["id"] for row in rows if row["leak"]]),
        "cut_off": _first([row["id"] for row in rows if row["cut_off"]]),
        "not_opened": _first(unopened),
        "names_not_found": _first(unknown),
        "no_answer": pictures - len(rows) - len(unopened),
    }


def _first(names: Sequence[str]) -> dict[str, Any]:
    return {"count": len(names), "first": names[:NAMED]}


def _summary(counts: dict[str, Any], out: Path) -> str:
    words = {
        "refused": "requests that the model refused",
        "no_label": "answers that name no label",
        "leaks": "reasons that say nothing but the emotion",
        "cut_off": "answers that are cut off; give a larger --max-tokens",
        "not_opened": "pictures that cannot be opened",
        "names_not_found": "names that are those of no picture",
    }
    rows = [f"{counts['answered']:,} of {counts['pictures']:,} pictures are answered ({out / 'ask.json'})"]
    rows += [f"  {text:<70}{counts[key]['count']:>8,}" for key, text in words.items() if counts[key]["count"]]
    if counts["no_answer"]:
        rows.append(f"  {'pictures without an answer; the same command requests them':<70}{counts['no_answer']:>8,}")
    rows += [f"  {name.replace('_', ' '):<70}{number:>8,}" for name, number in counts["usage"].items()]
    return "\n".join(rows)
