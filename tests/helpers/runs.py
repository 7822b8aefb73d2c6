"""Read the files of a run, and compare two runs exactly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer.runs.retention import entries


def lines(run: Path) -> list[dict]:
    """Return the rows of metrics.jsonl without times, speed and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time", "speed/", "memory/"))} for row in rows]


def same(a: object, b: object) -> bool:
    """Compare exactly, including tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(run: Path, unbroken: Path) -> None:
    """Compare all checkpoints with their content, the metrics, and the skipped images."""
    assert lines(run) == lines(unbroken)
    found, expected = ([entry.folder for entry in entries(folder / "checkpoints")] for folder in (run, unbroken))
    assert [folder.name for folder in found] == [folder.name for folder in expected]
    for mine, other in zip(found, expected, strict=True):
        assert same(load_file(mine / "model.safetensors"), load_file(other / "model.safetensors"))
        assert same(*(torch.load(folder / "training.pt", weights_only=True) for folder in (mine, other)))
        infos = [json.loads((folder / "checkpoint.json").read_text()) for folder in (mine, other)]
        assert infos[0] == infos[1]
    for name in ("skipped.jsonl", "checkpoints/index.json"):
        texts = [folder.joinpath(name).read_text() for folder in (run, unbroken) if (folder / name).exists()]
        assert len(texts) in (0, 2) and len({*texts}) <= 1, name


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*") if not path.name.startswith(".lock")]


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
