"""Configuration files from outside the repository: the user's own, and those stored in checkpoints.

They can only set keys: YAML tags and resolvers are rejected (`${oc.env:…}` would read the environment).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config import check
from common.errors import UserError, shorten
from common.reading import LARGEST_YAML, read_bytes

MAX_PROBLEMS = 20  # reported for one file
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def load_file(folder: str | None, name: str | None) -> tuple[DictConfig | None, str]:
    """Load the file of --config-path and --config-name, and return it with its preset (default: `none`).

    Its `hydra` and `defaults` sections are dropped: they would change the working directory and look for other files.
    For this project's own `config.yaml`, returns None and `demo`.

    Raises:
        UserError: no such folder or file, not YAML, or keys that `config.yaml` does not have.
    """
    path = _find_file(folder or ".", name or "config")
    if path == check.ROOT / "config.yaml":
        return None, "demo"
    tree = OmegaConf.to_container(_load(path))
    preset = tree.pop("preset", "none")
    tree = _adapted({key: value for key, value in tree.items() if key not in ("hydra", "defaults")})
    problems = [check.check_override("preset", str(preset))]
    problems += [f"'{key}' must be written as nested keys, without dots" for key in tree if "." in str(key)]
    found = dict(check.leaves(tree, check.groups()))
    problems += islice(filter(None, map(check.check_key, found)), MAX_PROBLEMS)  # slow: each is compared with all keys
    problems += _reference_problems(found)
    _raise_if_any(path, problems)
    return OmegaConf.create(tree), str(preset)


def _raise_if_any(path: Path, problems: Iterable[str | None]) -> None:
    if found := list(islice(filter(None, problems), MAX_PROBLEMS)):
        raise UserError("\n".join(f"{path}: {problem}" for problem in found))


def _reference_problems(found: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with references in values: they may only name a key with a plain value."""
    for key, text in ((key, str(value)) for key, value in found.items() if "${" in str(value)):
        names = REFERENCE.findall(text)
        if len(names) < text.count("${"):
            yield f"{key}: ${{…}} in a file may only name a key, such as ${{dataset.root}}"
        for name in names:
            if name not in check.rules():
                yield check.check_key(name) or f"{key}: there is no key {name}"
            elif "${" in str(found.get(name)):
                yield f"{key} refers to {name}, which refers to another key; write its value"


def load_stored(path: Path) -> DictConfig:
    """Load the configuration stored with a checkpoint, without keys that `config.yaml` does not have.

    Raises:
        UserError: the file cannot be read, or a value breaks the rule of its key.
    """
    config = _load(path)
    tree = OmegaConf.to_container(config)
    _drop_unknown(config, tree)
    found = dict(check.leaves(OmegaConf.to_container(config), check.groups()))
    problems = [*_reference_problems(found)]
    problems = problems or [check.check_value(config, key, value, "predict") for key, value in found.items()]
    _raise_if_any(path, problems)
    return config


def _drop_unknown(config: DictConfig, tree: dict[Any, Any], prefix: str = "") -> None:
    """Remove the keys that `config.yaml` does not have; `tree` is the plain content of `config`."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in check.groups() and isinstance(value, dict):
            _drop_unknown(config[name], value, f"{key}.")
        elif "." in str(name) or not (key in check.groups() or key in check.rules()):
            del config[name]


def _load(path: Path) -> DictConfig:
    """Return the content of a YAML file, references unresolved.

    Raises:
        UserError: it cannot be read, or is not a mapping.
    """
    try:
        text = read_bytes(path, largest=LARGEST_YAML).decode("utf-8")
        config = OmegaConf.load(io.StringIO(text))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read as YAML: {shorten(error, 1000)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} holds no KEY: VALUE lines")
    return config


def _find_file(folder: str, name: str) -> Path:
    folders = [place for place in (Path(folder), check.ROOT / folder) if place.is_dir()]
    if not folders:
        raise UserError(f"--config-path={folder}: there is no such folder")
    for place in folders:
        for path in (place / name, place / f"{name}.yaml", place / f"{name}.yml"):
            if path.is_file():
                return path.resolve()
    found = ", ".join(sorted(path.name for path in folders[0].glob("*.y*ml"))) or "no YAML file"
    raise UserError(f"--config-name={name}: {folders[0]} has no such file; it has {found}")


def _adapted(tree: dict[str, Any]) -> dict[str, Any]:
    """Adapt a file of the perceiver captioner: `video_dir` (of sign-language data), exp_dir: null, IGNORED keys."""
    dataset, trainer = tree.get("dataset"), tree.get("trainer")
    for part in list(dataset.values()) if isinstance(dataset, dict) else ():
        if isinstance(part, dict) and "video_dir" in part:
            part.setdefault("visual_dir", part.pop("video_dir"))
            dataset.setdefault("name", "mlslt")
    if isinstance(trainer, dict) and trainer.get("exp_dir", "") is None:
        del trainer["exp_dir"]
    for key in check.IGNORED:
        *path, last = key.split(".")
        section = reduce(lambda part, name: part.get(name) if isinstance(part, dict) else None, path, tree)
        if isinstance(section, dict) and last in section:
            del section[last]
            check.note_ignored(key)
    return tree
