"""Damage to files, for the tests that read hundreds of damaged ones, and the account of what became of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from common.errors import UserError
from data.images import ImageError
from tests.faults.test_damaged_data import WRONG, flipped, nodes, one_change, shuffled, truncated, zeroed
from tests.helpers.hostile import confined, time_limit

SECONDS = 30  # for one case
BYTES = (truncated, flipped, zeroed, shuffled)
Damage = Callable[[bytes, random.Random], bytes]
# What a key of a configuration could have, or a stranger could give it.
VALUES = (
    *(0, 1, 3, 64, -0.5, 2.5, 1e308, float("nan"), True, None, [], {}, [1]),
    *("auto", "x", "~x", "../x", "/dev/zero", "hf-hub:evil/x", "local-dir:/tmp", "gpt2x/evil", "transformer", "sevlm"),
    *("beam", "${seed}"),
)
# A network of 10**40 layers would be built until memory is full.
WRONG_SETTINGS = [value for value in WRONG if value != 10**40]


class Account:
    """What became of the cases; whatever is neither used nor refused in a sentence is named at the end.

    Args:
        root: nothing outside this folder may be written.
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
                first, *others = str(error).split("\n")  # each problem of a configuration has a line that names it
                if not first or not all(line.startswith(first.partition(": ")[0] + ": ") for line in others):
                    self.broken.append(f"{what}: {str(error)[:200]!r}")
            except BaseException as error:
                self.broken.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        self.broken += (f"{what}: {misdeed}" for misdeed in noticed)

    def close(self, *, cases: int, refused: float) -> None:
        """refused: the share of the cases that must have been, or the damage is none."""
        assert not self.broken, f"{len(self.broken)} of {cases}:\n" + "\n".join(self.broken)
        assert self.count.total() == cases and self.count["refused"] >= refused * cases, self.count


class Kind(NamedTuple):
    """How a whole file is written below a folder, how it is read, and what is done to it."""

    write: Callable[[Path], Path]
    read: Callable[[Path], object]
    damages: tuple[Damage, ...]
    cases: int
    refused: float = 0.2  # at least so many


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON file replaced or gone."""
    return json.dumps(one_change(json.loads(data), rng, WRONG_SETTINGS).data).encode()


def changed_line(data: bytes, rng: random.Random) -> bytes:
    """The same in one line of a file of JSON lines."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    return b"\n".join([*lines[:i], changed_json(b"[%s]" % lines[i], rng)[1:-1], *lines[i + 1 :]]) + b"\n"


def changed_yaml(data: bytes, rng: random.Random) -> bytes:
    return yaml.dump(one_change(yaml.safe_load(data), rng, WRONG_SETTINGS).data).encode("utf-8", "surrogatepass")


def other_values(data: bytes, rng: random.Random) -> bytes:
    """One to three values of a YAML file (or JSON, which is YAML too) are what another key could have."""
    tree = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *way, last = rng.choice(nodes(tree))
        section = tree
        for key in way:
            section = section[key]
        section[last] = rng.choice(VALUES)
    return yaml.dump(tree).encode()


def changed_head(data: bytes, rng: random.Random) -> bytes:
    """One value in the head of a safetensors file replaced or gone."""
    length = int.from_bytes(data[:8], "little")
    head = changed_json(data[8 : 8 + length], rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]
