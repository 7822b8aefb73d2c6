"""OmegaConf's objects in a pickle, as plain values.

A node is a class of OmegaConf and its state: `_content` of a mapping or list, `_val` of a value, `_parent` of each the
one that it is in. The format is the same in OmegaConf 2.0 to 2.3. What is not resolved in the file (`${…}`, `???`)
stays text. No code of OmegaConf runs: its classes are read as `StandIn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from common.errors import UserError
from model.weights.plain import StandIn

NAMES = (
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any", "collections.defaultdict"),
    # types that nodes are annotated with
    *(f"builtins.{name}" for name in ("dict", "list", "int", "str", "float", "bool", "object")),
)
DEEPEST = 20  # nodes inside nodes; a file can hold one inside itself


def plain(node: Any, where: str, depth: int = 0) -> Any:
    """Return dicts, lists and values.

    Raises:
        UserError: something else; `where` names the file in the message.
    """
    if isinstance(node, StandIn):
        node = node.state.get("_content", node.state.get("_val"))
    if depth < DEEPEST and isinstance(node, dict):
        return {str(key): plain(value, where, depth + 1) for key, value in dict.items(node)}
    if depth < DEEPEST and isinstance(node, list):
        return [plain(value, where, depth + 1) for value in node]
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise UserError(f"{where} is no configuration of OmegaConf, or damaged")


def root_of(node: Any) -> Any:
    """Return the whole configuration that a part carries with it; the part itself where it carries none."""
    for _ in range(DEEPEST):
        parent = node.state.get("_parent") if isinstance(node, StandIn) else None
        if parent is None:
            break
        node = parent
    return node


class Values:
    """Values of a configuration by their dotted keys, each of the type that it must have."""

    def __init__(self, where: str, tree: Any) -> None:
        self.where, self.tree = where, tree

    def _get(self, key: str, wanted: str, accepts: Callable[[Any], bool]) -> Any:
        found = self.tree
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise UserError(f"{self.where} has no {key}")
            found = found[part]
        if not accepts(found):
            raise UserError(f"{self.where}: {key} is {found!r} instead of {wanted}")
        return found

    def switch(self, key: str) -> bool:
        return self._get(key, "true or false", lambda found: type(found) is bool)

    def text(self, key: str, *choices: str) -> str:
        wanted = f"one of {', '.join(choices)}" if choices else "a text"
        return self._get(key, wanted, lambda found: type(found) is str and (not choices or found in choices))

    def count(self, key: str) -> int:
        """Return a positive whole number; 1.0 is 1."""
        return int(self._get(key, "a whole number", _is_count))


def _is_count(found: Any) -> bool:
    return type(found) in (int, float) and 1 <= found <= 1 << 20 and found == int(found)
