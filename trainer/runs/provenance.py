"""Versions, machine and git commit of a result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "open_clip_torch", "accelerate", "hydra-core")


def provenance() -> dict[str, Any]:
    """Return the main versions, the device and the git commit."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"versions": dict(versions(PACKAGES)), "device": device, "git": git_commit()}


def environment() -> dict[str, Any]:
    """Return every version of requirements.txt, the commit, whether files differ from it, and the hardware."""
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [match[0] for line in listed if (match := re.match(r"[\w.-]+", line))]
    commit = git_commit()
    git = None if commit is None else {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
    return {"versions": versions(tuple(names)), "git": git, "hardware": _hardware()}


@cache
def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


@cache
def git_commit() -> str | None:
    """Return the commit of the code at the first call, with "-dirty" if files differ from it."""
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware() -> dict[str, Any]:
    info = ""
    with suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    cpu = re.search(r"^model name\s*: (.+)$", info, re.MULTILINE)
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": [{"name": gpu.name, "gigabytes": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
    }
