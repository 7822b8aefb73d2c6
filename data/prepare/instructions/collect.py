"""Answers about pictures from a model behind an endpoint, appended to a file of JSON lines as they arrive."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from common.endpoint import Endpoint, Failed, Words
from common.errors import UserError
from common.files import to_json
from common.locks import Busy, locked
from common.progress import progress
from data.images import open_image
from data.prepare.parallel import count

MOST_FAILURES = 10  # in a row, after which the run ends
KEPT = "interrupted; the model's answers so far are kept, run the same command again to continue"
WORDS = Words(
    endpoint="--endpoint",
    model="--model",
    sent="pictures",
    encrypted="use https or --allow-http",
    too_large="the pictures are too large for the server; give a smaller --max-side",
    rejected="check that {model} accepts pictures",
)

Row = dict[str, Any]  # with the "id" of its picture and "usage"


class Task(Protocol):
    id: str


def add_options(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Add the options of the endpoint and of what is sent to it."""
    add = parser.add_argument
    add("--endpoint", required=required, metavar="URL",
        help="of an OpenAI-compatible API, up to /chat/completions; pictures are sent")  # fmt: skip
    add("--model", required=required, metavar="NAME", help="the model's name at the endpoint")
    add("--parallel", type=count, default=4, metavar="N", help="concurrent requests (%(default)s)")
    add("--max-side", type=count, default=1024, help="longest side of a picture that is sent, in pixels (%(default)s)")
    add("--max-tokens", type=count, default=400, help="longest answer in tokens (%(default)s)")
    add("--retries", type=int, default=6, help="of a request that fails or gets no response (%(default)s)")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request (%(default)s)")
    add("--allow-http", action="store_true", help="send pictures and key unencrypted to another machine")


def check_options(arguments: argparse.Namespace) -> None:
    if arguments.retries < 0 or not 0 < arguments.timeout < 1e5:
        raise UserError("--retries must be at least 0, and --timeout more than 0 seconds")


def open_endpoint(arguments: argparse.Namespace, *, as_json: bool = False) -> Endpoint:
    names = ("model", "timeout", "retries", "max_tokens", "allow_http")
    return Endpoint(
        arguments.endpoint, words=WORDS, as_json=as_json, **{name: getattr(arguments, name) for name in names}
    )


@contextmanager
def reserved(out: Path, *, purpose: str) -> Iterator[None]:
    """Lock an output folder: two runs at once would pay for every answer twice.

    Raises:
        UserError: another process has locked it, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out / ".lock", purpose=purpose, wait=False))
        except Busy as holder:
            raise UserError(f"--out {out} is in use by {holder}: wait for it, or give another folder") from None
        except OSError as error:
            raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from None
        yield


def read_lines(path: Path) -> list[Row]:
    """Return the objects in a file of JSON lines, {} in place of a damaged line; none if there is no file."""
    try:
        return [_parsed(line) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
    except FileNotFoundError:
        return []


def _parsed(line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def to_line(row: Row) -> str:
    return to_json(row, ensure_ascii=True)  # ASCII: an id may contain bytes that are not characters


def require_same_settings(before: object, settings: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless the answers that `path` belongs to were given under the same settings.

    Args:
        before: their settings as `path` has them.
    """
    if not isinstance(before, dict):
        raise UserError(f"{path} does not contain answers of this command; give another folder as --out")
    for key, value in settings.items():
        if before.get(key) != value:
            raise UserError(
                f"{path} contains answers for another {key} ({str(before.get(key))[:80]}, now {value}); use that one, "
                "or give another folder as --out"
            )


def collect(
    tasks: Sequence[Task],
    row_of: Callable[[Any], Awaitable[Row | None]],
    path: Path,
    done: dict[str, Row],
    *,
    endpoint: Endpoint,
    parallel: int,
) -> None:
    """Append the row of each task that `done` lacks to `path` and `done`; tasks that failed have none.

    Args:
        row_of: return the row of a task, None for a picture that cannot be opened; raise Failed for no usable response.
        done: the rows by id of picture.

    Raises:
        UserError: the endpoint cannot be used; rows so far are kept.
    """
    missing = [task for task in tasks if task.id not in done]
    used: Counter = Counter()
    with (
        path.open("a", encoding="utf-8", buffering=1) as file,
        progress(len(tasks), path.stem, unit="image", initial=len(tasks) - len(missing)) as bar,
    ):

        def keep(row: Row | None) -> None:
            bar.update()
            if row is not None:
                file.write(to_line(row))
                done[row["id"]] = row
                used.update(row["usage"])
                bar.set_postfix(used, refresh=False)

        asyncio.run(_work_in_parallel(iter(missing), row_of, keep, done, endpoint, parallel))


async def _work_in_parallel(
    tasks: Iterator[Task], row_of: Callable, keep: Callable, done: Mapping, endpoint: Endpoint, parallel: int
) -> None:
    """Coroutines and not threads: Ctrl-C cancels the requests that are under way instead of waiting for them."""
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


def total_usage(rows: Sequence[Row]) -> dict[str, float]:
    """Return the tokens of all prompts and answers, and the cost if the server reports it."""
    total: Counter = sum((Counter(row["usage"]) for row in rows), Counter())
    return {key: round(total[key], 9) for key in sorted(total)}


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
