"""Check the names and shapes of a file's tensors against a layout, and rename them to ours.

The layout follows from sizes that the tensors have, so that models of any size can be read. It must match all tensors:
the error message names the first that is missing, has another shape, or is left over.
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
    """Tensors of a file by their names there; `source` is the file's name in error messages."""

    source: str
    state: Mapping[str, Tensor]

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the rows and columns of a tensor; raise UserError if it is missing or is not a matrix."""
        if name not in self.state:
            raise UserError(f"{self.source}: {name} is missing")
        shape = tuple(self.state[name].shape)
        if len(shape) != 2 or not all(shape):
            raise UserError(f"{self.source}: {name} is {format_shape(shape)} instead of a matrix")
        return shape

    def count(self, prefix: str) -> int:
        """Return the number of parts that are numbered after `prefix`, from the largest number."""
        found = re.compile(rf"{re.escape(prefix)}(\d{{1,4}})\.")
        return max((int(match[1]) + 1 for name in self.state if (match := found.match(name))), default=0)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)

    def only(self, prefix: str) -> Tensors:
        return Tensors(self.source, {k: v for k, v in self.state.items() if k.startswith(prefix)})

    def without(self, *names: str, matching: Callable[[str], bool] = lambda name: False) -> Tensors:
        """Return the tensors except for `names` and the names for which `matching` is true."""
        return Tensors(self.source, {k: v for k, v in self.state.items() if k not in names and not matching(k)})

    def match(self, layout: Layout, *, because: str = "") -> dict[str, Tensor]:
        """Return all tensors by our names.

        Args:
            because: reason for the layout, added to error messages; empty if it follows from the tensors alone.

        Raises:
            UserError: a tensor is missing, has another shape, is not of floating point, or is left over.
        """
        matched = {}
        for name, (ours, shape) in layout.items():
            tensor = self.state.get(name)
            if tensor is None:
                raise UserError(f"{self.source}: {name} is missing{because}")
            if tuple(tensor.shape) != shape:
                found, wanted = format_shape(tuple(tensor.shape)), format_shape(shape)
                raise UserError(f"{self.source}: {name} is {found} instead of {wanted}{because}")
            if not tensor.is_floating_point() and not name.endswith(".num_batches_tracked"):
                raise UserError(f"{self.source}: {name} holds {tensor.dtype} instead of weights")
            matched[ours] = tensor
        if unknown := next((name for name in self.state if name not in layout), None):
            raise UserError(f"{self.source} holds {unknown}, which is no part of such a model{because}")
        return matched


def layout_of(module: nn.Module, theirs: str, ours: str) -> Layout:
    """Return the layout of a module that has the same names in the file and here, after the two prefixes."""
    return {theirs + name: (ours + name, tuple(value.shape)) for name, value in module.state_dict().items()}


def format_shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a number"


def weight_and_bias(theirs: str, ours: str, *weight: int) -> Layout:
    """Return the layout of a linear map or norm whose weight has this shape."""
    shapes = {"weight": weight, "bias": weight[:1]}
    return {f"{theirs}.{name}": (f"{ours}.{name}", shape) for name, shape in shapes.items()}
