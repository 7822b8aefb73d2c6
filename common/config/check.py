"""Validation of keys and values, with suggestions, before anything slow is imported.

Order: `check_overrides` and `common.config.files.load_file` before Hydra composes the configuration, `check_config`
on the result.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config.rules import NEEDED_BY, NEEDS, NOT_NEEDED, RULES, Rule, default_rule
from common.errors import UserError
from common.ranks import rank
from common.reading import ROOT

# Passed on to open_clip, transformers and timm, which define the keys.
FREE = (
    *("model.vision.config.", "model.vision.preprocess.", "model.text.config."),
    *("expert.teacher.config.", "vle.config."),
)
# Keys of perceiver captioner configurations that have no effect here.
IGNORED = ("model.text.xattn.num_latents", "dataset.validation_ds.shuffle")
MAX_KEY = 100  # characters; no suggestion for a longer key
MAX_VALUE = 200  # characters of a value in a message
PARSER = OverridesParser.create()


def leaves(tree: dict[str, Any], groups: Sequence[str] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of `tree`; descend only into the mappings named in `groups`, by default into all."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (groups is None or key in groups):
            yield from leaves(value, groups, f"{key}.")
        else:
            yield key, value


def default_config() -> DictConfig:
    """Return `config.yaml` without what it says to Hydra."""
    return _default_config().copy()


@cache
def _default_config() -> DictConfig:
    config = OmegaConf.load(ROOT / "config.yaml")
    del config["defaults"], config["hydra"]
    return config


@cache
def defaults() -> dict[str, Any]:
    """Return every key of `config.yaml` with its default, in file order."""
    return dict(leaves(OmegaConf.to_container(default_config())))


@cache
def groups() -> tuple[str, ...]:
    """Return the dotted name of every mapping in `config.yaml`."""
    parts = [key.split(".") for key in defaults()]
    return tuple(dict.fromkeys(".".join(part[:i]) for part in parts for i in range(1, len(part))))


@cache
def rules() -> dict[str, Rule]:
    """Return the rule of every key of `config.yaml`."""
    return {key: RULES.get(key) or default_rule(value) for key, value in defaults().items()}


@cache
def presets() -> dict[str, str]:
    """Return every preset with the first line of its comment."""
    found = {}
    for path in sorted((ROOT / "preset").glob("*.yaml"), key=lambda path: path.stem.lower()):
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        found[path.stem] = next((line for line in comments if not line.startswith("@package")), "")
    return found


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b).ratio()


def _did_you_mean(value: Any, words: Sequence[str]) -> str:
    text = str(value).lower()
    begun = [word for word in words if text and word.lower().startswith(text)]
    near = begun or difflib.get_close_matches(text, words, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_key(key: str) -> str | None:
    """Return why `key` cannot be set, with the most similar key, or None.

    The last part of a key counts twice: people remember `batch_size`, but not its group.
    """
    if key in rules():
        return None
    if key in groups():
        example = next(name for name in defaults() if name.startswith(f"{key}."))
        return f"{key} is a group of keys; set one of them, such as {example}"
    if len(key) > MAX_KEY:
        return f"unknown key '{key[:MAX_KEY]}…'"
    parent, _, last = key.rpartition(".")
    known = {name: name.rpartition(".") for name in (*defaults(), *groups())}
    nearest = max(known, key=lambda name: 2 * _similarity(last, known[name][2]) + _similarity(parent, known[name][0]))
    if _similarity(last, known[nearest][2]) < 0.6:
        return f"unknown key '{key}'{_did_you_mean(key, [*known]) or '; python run.py --help lists all keys'}"
    return f"unknown key '{key}'; did you mean '{nearest}'?"


def check_overrides(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Convert KEY=VALUE arguments of the command line to Hydra overrides.

    A value that Hydra cannot parse (`image=a(1).jpg`) is quoted, `+` and `++` are not needed; keys of the perceiver
    captioner are renamed, or dropped with a note (IGNORED).

    Raises:
        UserError: all arguments that are not KEY=VALUE, unknown keys and unknown presets, one per line.
    """
    checked, problems = [], []
    for text in overrides:
        name, equals, value = text.partition("=")
        key = name.strip().lstrip("+")
        if key.endswith("_ds.video_dir"):
            key = key.removesuffix("video_dir") + "visual_dir"
        if key in IGNORED and equals:
            note_ignored(key)
            continue
        if equals:
            problem = check_override(key, value, multirun)
        else:
            modes = [f"mode={mode}" for mode in RULES["mode"].words]
            problem = f"'{text}' is not KEY=VALUE{_did_you_mean(text, modes)}"
        if problem:
            problems.append(problem)
        elif key.startswith(("hydra.", "hydra/")):
            checked.append(text)
        else:
            checked.append(f"{'++' if f'{key}.'.startswith(FREE) else ''}{key}={_quoted(key, value, multirun)}")
    if problems:
        raise UserError("\n".join(problems))
    return checked


def note_ignored(key: str) -> None:
    if rank() == 0:
        print(f"note: {key} has no effect here and is left out", file=sys.stderr)


def check_override(key: str, value: str, multirun: bool = False) -> str | None:
    """Return what is wrong with setting `key` on the command line, or None; of values, only the preset is checked."""
    if key.startswith(("hydra.", "hydra/", *FREE)):
        return None
    if key.startswith("~"):
        return f"{key}: keys cannot be removed; null or false switches a key off, see config.yaml"
    if key == "preset":
        names = value.split(",") if multirun else [value]
        unknown = [name for name in names if name.strip() not in presets()]
        hints = (f"unknown preset '{name}'{_did_you_mean(name, [*presets()])}" for name in unknown)
        return "\n".join(f"{hint} ({' | '.join(presets())})" for hint in hints) or None
    return None if key in groups() and value.lstrip().startswith("{") else check_key(key)


@cache
def _quoted(key: str, value: str, multirun: bool) -> str:
    """Quote a value that Hydra would reject, sweep over, or read as another type than str."""
    try:
        parsed = PARSER.parse_override(f"{key}={value}")
        if parsed.is_sweep_override():
            literal = not multirun
        else:  # name=007 and name=true are strings
            literal = key in rules() and rules()[key].kind is str and isinstance(parsed.value(), (bool, int, float))
    except HydraException:
        literal = True
    return QuotedString(text=value, quote=Quote.single).with_quotes() if literal else value


def check_config(cfg: DictConfig) -> None:
    """Check every key and value of a composed configuration, and normalize the values in place.

    Interpolations are resolved, "1e-3" becomes 0.001, CosineAnnealing becomes cosine. `???` is replaced by the default
    where the mode does not read the key. Whether files exist is checked by their readers.

    Raises:
        UserError: all problems, one per line.
    """
    tree = OmegaConf.to_container(cfg)
    mode = str(tree.get("mode")).strip().lower()
    problems = [check_value(cfg, key, value, mode) for key, value in leaves(tree, groups())]
    for key, meaning in NEEDS.get(mode, {}).items():
        if OmegaConf.select(cfg, key) is None and key not in NOT_NEEDED.get(cfg.dataset.name, ()):
            problems.append(f"mode={mode} needs {key}={meaning}")
    if any(problems):
        raise UserError("\n".join(filter(None, problems)))


def check_value(cfg: DictConfig, key: str, raw: Any, mode: str) -> str | None:
    """Resolve and normalize one value in place; return what is wrong with it, or None."""
    if problem := check_key(key):
        return problem
    if raw == "???":
        modes = NEEDED_BY.get(key) or NEEDED_BY.get(key.rpartition(".")[0])
        if modes is None or mode in modes:
            missing = f"{key} is left open (???): write {key}=… on the command line"
            return None if key in NEEDS.get(mode, {}) else missing  # check_config reports the keys of NEEDS
        OmegaConf.update(cfg, key, defaults()[key], merge=False)
        return None
    value = raw
    try:
        if "${" in str(raw):
            value = OmegaConf.select(cfg, key)
            value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        new = rules()[key].read(value)
    except OmegaConfBaseException as error:
        return f"{key}: {str(error).splitlines()[0]}"
    except (ValueError, TypeError, OverflowError):
        return _wrong_value(key, value, rules()[key])
    if new != raw or type(new) is not type(raw):
        OmegaConf.update(cfg, key, new, merge=False)
    return None


def _wrong_value(key: str, value: Any, rule: Rule) -> str:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= MAX_VALUE else f"{shown[:MAX_VALUE]}…"
    return f"{key} must be {rule.describe()}, not {shown}{_did_you_mean(value, (rule.item or rule).words)}"
