"""What a foreign checkpoint comes to here, before it is written as a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class Imported:
    """Weights, and all that the run says of them.

    Args:
        preset: the preset that the run is made from.
        settings: dotted keys of config.yaml that the file decides, over the preset.
        weights: by our names; they may still lie in the file, and in any floating-point precision.
        vocabulary: rows of the word embedding: tokens that the tokenizer must have.
        tokens: ids that the tokenizer must give to some of them.
        tokenizer: where it is: name, folder or file, as dataset.tokenizer takes it.
        epoch, step: how far it was trained.
        files: all that was read.
        facts: what checkpoint.json says of the origin besides.
        remarks: what the user should know.
    """

    preset: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    vocabulary: int
    tokenizer: str
    files: list[Path]
    tokens: Mapping[str, int] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def whole_number(value: Any) -> int:
    """A count as a training stored it; 0 where it did not."""
    return value if type(value) is int and 0 <= value < 1 << 40 else 0
