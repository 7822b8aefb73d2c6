"""How large a network may be that is built because a file says so.

A configuration of a few bytes can ask for more weights than memory holds, or for layers without end; it came with
weights, and what it describes cannot have more of them than these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from foreign import Refused

MOST_TENSORS = 10_000  # of a network; GPT-2 XL has 580
SPARE = 1 << 26  # weights that are built and not stored: frozen random parts, output layers that are tied afterwards


class _Budget:
    def __init__(self, most: int) -> None:
        self.most = self.left = most
        self.tensors = 0


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def at_most(weights: int | None) -> Iterator[None]:
    """Inside, networks of so many weights together can be built; None: of any number.

    Weights and buffers count when a module gets them. Most modules fill them only then; see `rehearse` for the others.
    Of two such blocks the inner one counts.

    Raises:
        Refused: there are more.
    """
    before = _budget.set(None if weights is None else _Budget(weights))
    try:
        yield
    finally:
        _budget.reset(before)


def rehearse(build: Callable[[], object]) -> None:
    """Where weights are limited: builds without memory what fills its weights before it keeps them.

    Raises:
        Refused: see `at_most`. Exception: whatever `build` raises.
    """
    budget = _budget.get()
    if budget is None:
        return
    before = budget.left, budget.tensors
    with torch.device("meta"):
        build()
    budget.left, budget.tensors = before


def spare_and(stored: int) -> int:
    """For `at_most`: what a file with `stored` weights or bytes may describe."""
    return 2 * stored + SPARE


def bytes_of(folder: Path) -> int:
    """Of the files in a folder, which are more than their weights."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _charge(module: nn.Module, name: str, weights: Tensor | None) -> None:
    budget = _budget.get()
    if budget is not None and weights is not None:
        budget.left -= weights.numel()
        budget.tensors += 1
        if budget.left < 0 or budget.tensors > MOST_TENSORS:
            raise Refused(f"it describes more than {budget.most:,} weights, many more than there are in the file")


register_module_parameter_registration_hook(_charge)
register_module_buffer_registration_hook(_charge)
