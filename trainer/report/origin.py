"""What metrics.json and the pages state about the origin of their figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from trainer.runs.checkpoint import Checkpoint
from trainer.runs.provenance import provenance


def origin_of(config: DictConfig, checkpoint: Checkpoint, **others: Any) -> dict[str, Any]:
    """Return checkpoint, step and seed, `others`, versions, machine and commit."""
    origin = {"checkpoint": str(checkpoint.folder), "step": checkpoint.info["state"]["step"], "seed": config.seed}
    return {**origin, **others, **provenance()}


def facts_of(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return seed, versions, machine and commit as a page shows them."""
    return {
        "seed": str(origin["seed"]),
        "versions": ", ".join(f"{name} {number}" for name, number in origin["versions"].items()),
        "machine": origin["device"],
        "commit": str(origin["git"] or "unknown"),
    }


def vle_facts(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a page of VLE."""
    return {"checkpoint": origin["checkpoint"], "trained for": f"{origin['step']} steps", **facts_of(origin)}
