"""The training images of a network, stored in its checkpoints, so that nothing is fitted to its predictions of them.

CHECKPOINT/trained_on.safetensors   for each network, by name: a sorted list of data.held_out.identity
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from data.held_out import identity
from data.samples import Samples
from model.weights.tensor_files import ANOTHER_CHECKPOINT, read_tensors

FILE = "trained_on.safetensors"
CAPTIONER = "captioner"


def seen_in(samples: Samples) -> Tensor:
    """Return the identities of the images: (N,) int64, sorted."""
    return torch.tensor(sorted({identity(sample) for sample in samples}), dtype=torch.int64)


def write_seen(folder: Path, seen: Mapping[str, Tensor]) -> None:
    save_file(dict(seen), folder / FILE)


def read_seen(folder: Path) -> dict[str, Tensor]:
    """Return an empty dict if the checkpoint has no such file; raise UserError if it cannot be read."""
    path = folder / FILE
    return read_tensors(path, way_out=ANOTHER_CHECKPOINT) if path.is_file() else {}


def require_unseen(samples: Samples, seen: Mapping[str, Tensor], *, where: str) -> None:
    """Raise UserError with the first image that one of the networks was trained on."""
    for network, images in seen.items():
        known = set(images.tolist())
        leaked = [sample.id for sample in samples if identity(sample) in known]
        if leaked:
            raise UserError(
                f"{len(leaked)} of the {len(samples)} images in {where} were trained on by the {network}, the first is "
                f"{leaked[0]}: a gate fitted to them would trust it too much. Train all stages with the same "
                "dataset.gate_split above 0, or name another dataset.validation_ds"
            )
