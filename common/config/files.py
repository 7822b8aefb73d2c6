"""Configuration files that are not this project's own: the user's, and those that runs wrote down.

Neither can do more than give values to keys: no YAML tags, and no resolvers (`${oc.env:…}` would read the environment).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config.check import IGNORED, ROOT, groups, key_problem, leaves, misplaced, note_ignored, rules, settle
from common.errors import UserError, in_short
from common.reading import LARGEST_YAML, read_bytes

SHOWN = 20  # problems of a file
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def load_file(folder: str | None, name: str | None) -> tuple[DictConfig | None, str]:
    """The file of --config-path and --config-name, and the preset that goes under it.

    Its `hydra` and `defaults` sections are left out: they would move the working directory and look for other files.
    The file may name a preset by the key `preset`; without it the preset is `none`. None and `demo` stand for this
    project's own `config.yaml`.

    Raises:
        UserError: the folder or file does not exist, is not YAML, or has keys that `config.yaml` does not know.
    """
    path = _find_file(folder or ".", name or "config")
    if path == ROOT / "config.yaml":
        return None, "demo"
    tree = _plain_tree(path)
    preset = tree.pop("preset", "none")
    tree = _modernised({key: value for key, value in tree.items() if key not in ("hydra", "defaults")})
    problems = [key_problem("preset", str(preset))]
    problems += [f"'{key}' must be written as keys inside keys, without dots" for key in tree if "." in str(key)]
    found = dict(leaves(tree, groups()))
    problems += islice(filter(None, map(misplaced, found)), SHOWN)  # each takes a while to find the nearest key
    problems += _reference_problems(found)
    if any(problems):
        raise UserError("\n".join(f"{path}: {problem}" for problem in [*filter(None, problems)][:SHOWN]))
    return OmegaConf.create(tree), str(preset)


def _reference_problems(found: dict[str, Any]) -> Iterator[str]:
    """A value may refer to a key that holds a plain one, as `${dataset.root}/images` does."""
    for key, text in ((key, str(value)) for key, value in found.items() if "${" in str(value)):
        names = REFERENCE.findall(text)
        if len(names) < text.count("${"):
            yield f"{key}: ${{…}} in a file may only name a key, such as ${{dataset.root}}"
        for name in names:
            if name not in rules():
                yield misplaced(name) or f"{key}: there is no key {name}"
            elif "${" in str(found.get(name)):
                yield f"{key} refers to {name}, which refers to another key; write its value"


def load_stored(path: Path) -> DictConfig:
    """The configuration that a run wrote down. Keys that this version does not know are left out.

    Raises:
        UserError: the file cannot be read, or a value is not what its key takes.
    """
    tree = _plain_tree(path)
    found = {key: value for key, value in leaves(tree, groups()) if key in rules() or key in groups()}
    config = OmegaConf.create({key: {} for key, value in tree.items() if key in groups() and isinstance(value, dict)})
    for key, value in found.items():
        if key in groups():
            raise UserError(f"{path}: {misplaced(key)}")
        OmegaConf.update(config, key, value, merge=False)
    problems = [*_reference_problems(found)] or [settle(config, key, value, "predict") for key, value in found.items()]
    if any(problems):
        raise UserError("\n".join(f"{path}: {problem}" for problem in [*filter(None, problems)][:SHOWN]))
    return config


def _plain_tree(path: Path) -> dict[Any, Any]:
    """What is in a YAML file, with references as they are written.

    Raises:
        UserError: it cannot be read, or holds what a configuration does not need.
    """
    try:
        text = read_bytes(path, largest=LARGEST_YAML).decode("utf-8")
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read as YAML: {in_short(error, 1000)}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no KEY: VALUE lines")
    return tree


def _find_file(folder: str, name: str) -> Path:
    folders = [place for place in (Path(folder), ROOT / folder) if place.is_dir()]
    if not folders:
        raise UserError(f"--config-path={folder}: there is no such folder")
    for place in folders:
        for path in (place / name, place / f"{name}.yaml", place / f"{name}.yml"):
            if path.is_file():
                return path.resolve()
    found = ", ".join(sorted(path.name for path in folders[0].glob("*.y*ml"))) or "no YAML file at all"
    raise UserError(f"--config-name={name}: {folders[0]} has no such file, but {found}")


def _modernised(tree: dict[str, Any]) -> dict[str, Any]:
    """Adapt a file written for the perceiver captioner: `video_dir` (of sign-language data), exp_dir: null, IGNORED."""
    dataset, trainer = tree.get("dataset"), tree.get("trainer")
    for part in list(dataset.values()) if isinstance(dataset, dict) else ():
        if isinstance(part, dict) and "video_dir" in part:
            part.setdefault("visual_dir", part.pop("video_dir"))
            dataset.setdefault("name", "mlslt")
    if isinstance(trainer, dict) and trainer.get("exp_dir", "") is None:
        del trainer["exp_dir"]
    for key in IGNORED:
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            del section[last]
            note_ignored(key)
    return tree
