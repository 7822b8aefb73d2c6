"""requirements.txt and pyproject.toml list the same packages, but for pictures of phones, which nothing else needs."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_requirements_are_the_dependencies_and_all_extras():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [requirement for line in lines if (requirement := line.partition("#")[0].strip())]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = {name: extra for name, extra in project["optional-dependencies"].items() if name != "heic"}
    extras = [requirement for extra in optional.values() for requirement in extra]
    assert listed == [*project["dependencies"], *extras]
