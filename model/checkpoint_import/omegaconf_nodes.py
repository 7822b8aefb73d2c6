"""OmegaConf's objects in a pickle that was read inertly, as plain values.

A node is a class of OmegaConf and its state: `_content` of a mapping or list, `_val` of a value, `_parent` of each the
one that it is in. The format is the same in OmegaConf 2.0 to 2.3. What is not settled in the file (`${…}`, `???`) stays
the text that it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from errors import UserError
from model.checkpoint_import.inert_pickle import Built

MAPPING, SEQUENCE = "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"
VALUES = frozenset(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean"))
# Types that nodes say they are for; pickle's protocol 2 calls builtins by their names in Python 2.
TYPES = frozenset(
    f"{module}.{name}"
    for module in ("__builtin__", "builtins")
    for name in ("dict", "list", "int", "long", "str", "unicode", "float", "bool", "object")
)
NAMES = frozenset(
    (
        *(MAPPING, SEQUENCE, *VALUES, *TYPES),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any", "collections.defaultdict"),
    )
)
DEEPEST = 20  # of nodes in nodes; a file can hold one inside itself
MOST_NODES = 10_000


def plain(node: Any, where: str) -> Any:
    """Dicts, lists and values.

    Raises:
        UserError: something else; `where` says in the complaint where it is.
    """
    return _plain(node, where, 0, count(1))


def _plain(node: Any, where: str, depth: int, number: Iterator[int]) -> Any:
    """number: gives that of the next node; one that stands at many places counts at each."""
    if next(number) > MOST_NODES:
        raise UserError(f"{where} has more than {MOST_NODES:,} values, so it is no configuration of OmegaConf")
    if node is None or type(node) in (bool, int, float, str):
        return node
    kind = type(node).__name__ if isinstance(node, Built) else ""
    content = node
    if kind:
        content = node.state.get("_val" if kind in VALUES else "_content") if isinstance(node.state, dict) else node
    if depth < DEEPEST and kind not in VALUES:
        if isinstance(content, dict):
            return {str(key): _plain(value, where, depth + 1, number) for key, value in content.items()}
        if isinstance(content, list):
            return [_plain(value, where, depth + 1, number) for value in content]
    if content is None or type(content) in (bool, int, float, str):
        return content
    raise UserError(f"{where} is no configuration of OmegaConf, or damaged")


def root_of(node: Any) -> Any:
    """The whole configuration that a part carries with it; the part itself where it carries none."""
    for _ in range(DEEPEST):
        parent = node.state.get("_parent") if isinstance(node, Built) and isinstance(node.state, dict) else None
        if parent is None:
            break
        node = parent
    return node


class Values:
    """Values of a configuration by their dotted keys, each of the type that it must have."""

    def __init__(self, where: str, tree: Any) -> None:
        self.where, self.tree = where, tree

    def _get(self, key: str, wanted: str, *kinds: type) -> Any:
        found = self.tree
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise UserError(f"{self.where} has no {key}")
            found = found[part]
        if type(found) not in kinds:
            raise UserError(f"{self.where}: {key} is {found!r} instead of {wanted}")
        return found

    def switch(self, key: str) -> bool:
        return self._get(key, "true or false", bool)

    def text(self, key: str, *choices: str) -> str:
        wanted = f"one of {', '.join(choices)}" if choices else "a text"
        found = self._get(key, wanted, str)
        if choices and found not in choices:
            raise UserError(f"{self.where}: {key} is {found!r} instead of {wanted}")
        return found

    def count(self, key: str) -> int:
        """1.0 is 1."""
        found = self._get(key, "a whole number", int, float)
        if found < 1 or found != found // 1 or found > 1 << 20:
            raise UserError(f"{self.where}: {key} is {found!r} instead of a whole number")
        return int(found)
