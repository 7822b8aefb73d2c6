"""Checks keys and values before anything heavy is imported, and says what to write instead.

Order: `check_overrides` and `config_files.load_file` before Hydra composes, `check_config` on what it composed.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.config.rules import NEEDED_BY, NEEDS, NOT_NEEDED, RULES, Rule, by_default
from common.errors import UserError
from common.ranks import rank

ROOT = Path(__file__).resolve().parents[2]
FREE = ("model.vision.config.", "model.text.config.", "expert.teacher.config.")  # open_clip's, transformers' and timm's
# Keys of configurations for the perceiver captioner that decide nothing here.
IGNORED = ("model.text.xattn.num_latents", "dataset.validation_ds.shuffle")
LONGEST_KEY = 100  # characters; a longer one is like no other
LONGEST_SHOWN = 200  # characters of a value, in a message


def leaves(tree: dict[str, Any], groups: Sequence[str] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of `tree`; goes into the mappings named in `groups` only, by default into all."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (groups is None or key in groups):
            yield from leaves(value, groups, f"{key}.")
        else:
            yield key, value


@cache
def defaults() -> dict[str, Any]:
    """Every key of `config.yaml` and its default, in the order of the file."""
    base = OmegaConf.to_container(OmegaConf.load(ROOT / "config.yaml"))
    return dict(leaves({name: value for name, value in base.items() if name not in ("defaults", "hydra")}))


@cache
def groups() -> tuple[str, ...]:
    """Every mapping of `config.yaml`, dotted."""
    parts = [key.split(".") for key in defaults()]
    return tuple(dict.fromkeys(".".join(part[:i]) for part in parts for i in range(1, len(part))))


@cache
def rules() -> dict[str, Rule]:
    """Every key of `config.yaml` and its rule."""
    return {key: RULES.get(key) or by_default(value) for key, value in defaults().items()}


@cache
def presets() -> dict[str, str]:
    """Every preset and the first line of its comment."""
    found = {}
    for path in sorted((ROOT / "preset").glob("*.yaml")):
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        found[path.stem] = next((line for line in comments if not line.startswith("@package")), "")
    return found


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b).ratio()


def _did_you_mean(value: Any, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(value).lower(), words, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def misplaced(key: str) -> str | None:
    """What is wrong with giving `key` a value, or None; the nearest key is named for one that does not exist.

    The last part of the key counts twice: people remember `batch_size`, not where it is.
    """
    if key in rules():
        return None
    if key in groups():
        example = next(name for name in defaults() if name.startswith(f"{key}."))
        return f"{key} is a group of keys; set one of them, such as {example}"
    if len(key) > LONGEST_KEY:
        return f"unknown key '{key[:LONGEST_KEY]}…'"
    parent, _, last = key.rpartition(".")
    known = {name: name.rpartition(".") for name in (*defaults(), *groups())}
    nearest = max(known, key=lambda name: 2 * _likeness(last, known[name][2]) + _likeness(parent, known[name][0]))
    if _likeness(last, known[nearest][2]) < 0.6:
        return f"unknown key '{key}'{_did_you_mean(key, [*known]) or '; python run.py --help lists them all'}"
    return f"unknown key '{key}'; did you mean '{nearest}'?"


# --- the command line ------------------------------------------------------------------------------------------------


def check_overrides(overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """The command line's KEY=VALUE arguments as Hydra is to get them.

    A value that Hydra cannot read as one value (`image=a(1).jpg`) is passed on as the text that it is, `+` and `++`
    are not needed anywhere; keys of the perceiver captioner have their present names, or are left out (IGNORED).

    Raises:
        UserError: arguments that are not KEY=VALUE, unknown keys, unknown presets: all of them, one per line.
    """
    checked, problems = [], []
    for text in overrides:
        name, equals, value = text.partition("=")
        key = _present_name(name.strip().lstrip("+"))
        if key in IGNORED and equals:
            note_ignored(key)
            continue
        problem = key_problem(key, value, multirun) if equals else f"'{text}' is not KEY=VALUE{_mode_hint(text)}"
        if problem:
            problems.append(problem)
        elif key.startswith(("hydra.", "hydra/")):
            checked.append(text)
        else:
            checked.append(f"{'++' if f'{key}.'.startswith(FREE) else ''}{key}={_one_value(key, value, multirun)}")
    if problems:
        raise UserError("\n".join(problems))
    return checked


def note_ignored(key: str) -> None:
    if rank() == 0:
        print(f"note: {key} has no effect here and is left out", file=sys.stderr)


def _present_name(key: str) -> str:
    return key.removesuffix("video_dir") + "visual_dir" if key.endswith("_ds.video_dir") else key


def _mode_hint(text: str) -> str:
    near = difflib.get_close_matches(text.lower(), RULES["mode"].words, n=1)
    return f"; did you mean mode={near[0]}?" if near else ""


def key_problem(key: str, value: str, multirun: bool = False) -> str | None:
    if key.startswith(("hydra.", "hydra/", *FREE)):
        return None
    if key.startswith("~"):
        return f"{key}: keys cannot be taken out; a key is switched off with null or false, as config.yaml says"
    if key == "preset":
        names = value.split(",") if multirun else [value]
        unknown = [name for name in names if name.strip() not in presets()]
        hints = (f"unknown preset '{name}'{_did_you_mean(name, [*presets()])}" for name in unknown)
        return "\n".join(f"{hint} ({' | '.join(presets())})" for hint in hints) or None
    if key in groups() and value.lstrip().startswith("{"):
        return None
    return misplaced(key)


def _one_value(key: str, value: str, multirun: bool) -> str:
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={value}")
        if parsed.is_sweep_override():
            literal = not multirun
        else:  # name=007 and name=true are texts
            literal = key in rules() and rules()[key].kind is str and isinstance(parsed.value(), (bool, int, float))
    except HydraException:
        literal = True
    return QuotedString(text=value, quote=Quote.single).with_quotes() if literal else value


# --- the composed configuration --------------------------------------------------------------------------------------


def check_config(cfg: DictConfig) -> None:
    """Checks every key and value of a composed configuration, and puts values into their proper spelling in place.

    Interpolations are resolved, "1e-3" becomes 0.001, CosineAnnealing becomes cosine. `???` is allowed where the mode
    does not read it, and gives way to the default. Whether files exist is for those to say who read them.

    Raises:
        UserError: everything that is wrong, one problem per line.
    """
    tree = OmegaConf.to_container(cfg)
    mode = str(tree.get("mode")).strip().lower()
    problems = [settle(cfg, key, value, mode) for key, value in leaves(tree, groups())]
    for key, meaning in NEEDS.get(mode, {}).items():
        if OmegaConf.select(cfg, key) is None and key not in NOT_NEEDED.get(cfg.dataset.name, ()):
            problems.append(f"mode={mode} needs {key}={meaning}")
    if any(problems):
        raise UserError("\n".join(problem for problem in problems if problem))


def settle(cfg: DictConfig, key: str, raw: Any, mode: str) -> str | None:
    """Writes the value back, resolved and as its rule spells it; what is wrong with it, or None."""
    problem = misplaced(key)
    if problem:
        return problem
    if raw == "???":
        if _needed_by(key, mode):  # a key of NEEDS is reported there, with its meaning
            return (
                None if key in NEEDS.get(mode, {}) else f"{key} is left open (???): write {key}=… on the command line"
            )
        OmegaConf.update(cfg, key, defaults()[key], merge=False)
        return None
    try:
        value = _resolved(cfg, key) if "${" in str(raw) else raw
        new = rules()[key].read(value)
    except OmegaConfBaseException as error:
        return f"{key}: {str(error).splitlines()[0]}"
    except (ValueError, TypeError, OverflowError):
        return _wrong_value(key, value, rules()[key])
    if new != raw or type(new) is not type(raw):
        OmegaConf.update(cfg, key, new, merge=False)
    return None


def _needed_by(key: str, mode: str) -> bool:
    modes = NEEDED_BY.get(key) or NEEDED_BY.get(key.rpartition(".")[0])
    return modes is None or mode in modes


def _resolved(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _wrong_value(key: str, value: Any, rule: Rule) -> str:
    plain = value is None or isinstance(value, bool)
    shown = {None: "null", True: "true", False: "false"}[value] if plain else _shortened(repr(value))
    words = rule.item.words if rule.item else rule.words
    return f"{key} must be {rule.wanted()}, not {shown}{_did_you_mean(value, words)}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
