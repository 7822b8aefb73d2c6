"""What names and shapes a file's tensors must have, and our names for them: every tensor is accounted for.

A layout is made from the dimensions that the tensors themselves have, so files of any size are read, and compared with
the whole of the tensors: the first that is missing, of another shape or left over is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from common.errors import UserError

Shape = tuple[int, ...]
Layout = dict[str, tuple[str, Shape]]  # their name → our name and the shape


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file, by their names there.

    Args:
        source: what complaints call the file.
    """

    source: str
    state: Mapping[str, Tensor]

    def matrix(self, name: str) -> tuple[int, int]:
        """Rows and columns of one tensor.

        Raises:
            UserError: it is missing, or no matrix.
        """
        if name not in self.state:
            raise UserError(f"{self.source}: {name} is missing")
        shape = tuple(self.state[name].shape)
        if len(shape) != 2 or not all(shape):
            raise UserError(f"{self.source}: {name} is {in_words(shape)} instead of a matrix")
        return shape

    def count(self, prefix: str) -> int:
        """How many parts are numbered behind `prefix`, up to the largest number."""
        found = re.compile(rf"{re.escape(prefix)}(\d{{1,4}})\.")
        return max((int(match[1]) + 1 for name in self.state if (match := found.match(name))), default=0)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)

    def only(self, beginning: str) -> Tensors:
        return Tensors(self.source, {k: v for k, v in self.state.items() if k.startswith(beginning)})

    def without(self, *names: str, ends: Callable[[str], bool] = lambda name: False) -> Tensors:
        """Without these, and without those of which `ends` is true."""
        return Tensors(self.source, {k: v for k, v in self.state.items() if k not in names and not ends(k)})

    def match(self, layout: Layout, *, because: str = "") -> dict[str, Tensor]:
        """All tensors by our names.

        Args:
            because: why a shape must be as it is, where the tensors alone do not say so.

        Raises:
            UserError: the first tensor that is missing, of another shape, not of floating point, or left over.
        """
        matched = {}
        for name, (ours, shape) in layout.items():
            tensor = self.state.get(name)
            if tensor is None:
                raise UserError(f"{self.source}: {name} is missing{because}")
            if tuple(tensor.shape) != shape:
                found, wanted = in_words(tuple(tensor.shape)), in_words(shape)
                raise UserError(f"{self.source}: {name} is {found} instead of {wanted}{because}")
            if not tensor.is_floating_point() and not name.endswith(".num_batches_tracked"):
                raise UserError(f"{self.source}: {name} holds {tensor.dtype} instead of weights")
            matched[ours] = tensor
        for name in self.state:
            if name not in layout:
                raise UserError(f"{self.source} holds {name}, which is no part of such a model{because}")
        return matched


def layout_of(module: nn.Module, theirs: str, ours: str) -> Layout:
    """Return the layout of a module whose names are the same there, behind the prefixes `theirs` and `ours`."""
    return {theirs + name: (ours + name, tuple(value.shape)) for name, value in module.state_dict().items()}


def in_words(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a number"


def pair(theirs: str, ours: str, *weight: int, bias: int | None = -1) -> Layout:
    """A map or norm: its weight, and its bias of `bias` numbers (as many as the weight has rows; None: no bias)."""
    layout = {f"{theirs}.weight": (f"{ours}.weight", weight)}
    if bias is not None:
        layout[f"{theirs}.bias"] = (f"{ours}.bias", (weight[0] if bias < 0 else bias,))
    return layout
