"""Damage files at random, read them, and count what was used and what was refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from common.errors import UserError
from data.images import ImageError
from tests.helpers.hostile import confined, time_limit

WRONG = (None, True, 0, -1, 0.5, 1e308, 10**40, "", "x", " ", "\ud800", "a\0b", "../../etc/passwd", "/etc/passwd")
WRONG = (*WRONG, [], {}, [[]], [None], ["awe"], {"a": 1}, float("nan"), float("inf"), "\u202e", "awe" * 1000)
SECONDS = 30  # time limit of one case
Damage = Callable[[bytes, random.Random], bytes]
# Values that a key of a configuration can have, or that an attacker can give it.
VALUES = (
    *(0, 1, 3, 64, -0.5, 2.5, 1e308, float("nan"), True, None, [], {}, [1]),
    *("auto", "x", "~x", "../x", "/dev/zero", "hf-hub:evil/x", "local-dir:/tmp", "gpt2x/evil", "transformer", "sevlm"),
    *("beam", "${seed}"),
)
# A network of 10**40 layers would be built until memory is full.
WRONG_SETTINGS = [value for value in WRONG if value != 10**40]


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data) // 2)]


def flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 3, 10, 40))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zeroed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    hole = data[start : start + rng.randrange(4, 400)]
    return data[:start] + bytes(len(hole)) + data[start + len(hole) :]


def shuffled(data: bytes, rng: random.Random) -> bytes:
    """Two adjacent pieces swapped."""
    a, b, c = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


BYTES = (truncated, flipped, zeroed, shuffled)


def nodes(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in a JSON tree, except for the tree itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, child in items for p in ((*path, key), *nodes(child, (*path, key)))]


class Change(NamedTuple):
    """A copy of some JSON with one value replaced or removed."""

    data: object  # the copy
    words: str  # description of the change
    by_intent: bool  # could be valid data: an entry less, of another split or language, or without a text


def one_change(data: object, rng: random.Random, wrong: Sequence[object] = WRONG) -> Change:
    damaged = json.loads(json.dumps(data))  # a copy in which no two entries share a list
    *way, last = rng.choice([node for node in nodes(damaged) if node not in (("images",), ("annotations",))])
    parent = damaged
    for key in way:
        parent = parent[key]
    if rng.random() < 0.25:
        del parent[last]
        return Change(damaged, f"no {[*way, last]}", isinstance(parent, list) or not way)
    parent[last] = value = rng.choice(wrong)
    selects = last in ("split", "lang") and isinstance(value, str)
    return Change(damaged, f"{[*way, last]} = {str(value)[:30]!r}", selects or (last == "sentences" and value == []))


class Account:
    """Counts cases; at the end, fails for those that are neither used nor refused with a clear message.

    Args:
        root: folder outside of which nothing may be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count: Counter[str] = Counter()
        self.broken: list[str] = []

    def read(self, what: str, read: Callable[[], object]) -> None:
        with confined(self.root) as noticed:
            try:
                with time_limit(SECONDS):
                    read()
                self.count["used"] += 1
            except KeyboardInterrupt:
                raise
            except (UserError, ImageError) as error:
                self.count["refused"] += 1
                first, *others = str(error).split("\n")  # a configuration's problems have one line each
                if not first or not all(line.startswith(first.partition(": ")[0] + ": ") for line in others):
                    self.broken.append(f"{what}: {str(error)[:200]!r}")
            except BaseException as error:
                self.broken.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        self.broken += (f"{what}: {violation}" for violation in noticed)

    def close(self, *, cases: int, refused: float) -> None:
        """Assert that no case failed and that at least the share `refused` of them was refused."""
        assert not self.broken, f"{len(self.broken)} of {cases}:\n" + "\n".join(self.broken)
        assert self.count.total() == cases and self.count["refused"] >= refused * cases, self.count


class Kind(NamedTuple):
    """How a file is written into a folder, read, and damaged."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...]
    cases: int
    refused: float = 0.2  # minimum share of refused cases


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """Replace or remove one value of a JSON file."""
    return json.dumps(one_change(json.loads(data), rng, WRONG_SETTINGS).data).encode()


def changed_line(data: bytes, rng: random.Random) -> bytes:
    """The same in one line of a JSON Lines file."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    return b"\n".join([*lines[:i], changed_json(b"[%s]" % lines[i], rng)[1:-1], *lines[i + 1 :]]) + b"\n"


def changed_yaml(data: bytes, rng: random.Random) -> bytes:
    return yaml.dump(one_change(yaml.safe_load(data), rng, WRONG_SETTINGS).data).encode("utf-8", "surrogatepass")


def other_values(data: bytes, rng: random.Random) -> bytes:
    """Replace one to three values of a YAML or JSON file by values of other keys."""
    tree = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *way, last = rng.choice(nodes(tree))
        section = tree
        for key in way:
            section = section[key]
        section[last] = rng.choice(VALUES)
    return yaml.dump(tree).encode()


def changed_head(data: bytes, rng: random.Random) -> bytes:
    """Replace or remove one value in the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    head = changed_json(data[8 : 8 + length], rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]
