"""Convert pickled objects of OmegaConf to plain values.

The state of a node is `_content` of a mapping or list, or `_val` of a value, and `_parent`, the node that contains it.
The format is the same in OmegaConf 2.0 to 2.3. Interpolations (`${…}`) and missing values (`???`) remain text. No code
of OmegaConf is run: its classes are read as `StandIn`.
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
    # type annotations of nodes
    *(f"builtins.{name}" for name in ("dict", "list", "int", "str", "float", "bool", "object")),
)
DEEPEST = 20  # nested nodes; a node can contain itself


def plain(node: Any, where: str, depth: int = 0) -> Any:
    """Return a node as nested dicts, lists and values; raise UserError, which names `where`, for anything else."""
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
    """Return the outermost node that contains this one, or the node itself."""
    for _ in range(DEEPEST):
        node = (isinstance(node, StandIn) and node.state.get("_parent")) or node
    return node


class Values:
    """Typed access to a configuration by dotted keys; errors name the key."""

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
        """Return a positive whole number; 1.0 is accepted as 1."""
        return int(self._get(key, "a whole number", _is_count))


def _is_count(found: Any) -> bool:
    return type(found) in (int, float) and 1 <= found <= 1 << 20 and found == int(found)
