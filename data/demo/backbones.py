"""The frozen backbones that the demo ships; data/demo/pretrain.py makes them."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.files import sha256
from common.reading import BACKBONES, expand_user

CHECKSUMS = "SHA256SUMS"


def check_backbones(*names: str | None) -> None:
    """Check the files of those `names` (values of pretrained_name) that are shipped.

    Raises:
        UserError: a file is missing or differs from the one that was shipped.
    """
    folder = expand_user(BACKBONES)
    for name in (Path(name).name for name in names if name and Path(name).parent == BACKBONES):
        for line in _lines(folder):
            digest, _, file = line.partition("  ")
            path = folder / file
            if file.startswith(f"{name}/") and (not path.is_file() or sha256(path) != digest):
                raise UserError(
                    f"{path} is missing or was changed: `git checkout {BACKBONES}` restores it, and `python -m "
                    f"data.demo.pretrain {name} --out {BACKBONES}` makes it again"
                )


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{folder / CHECKSUMS} is missing: `git checkout {BACKBONES}` restores it") from error


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file below `folder`, as sha256sum does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    lines = (f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
