"""Every command in README.md and docs/ is checked as far as it goes without running it."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable

import pytest
from hydra import compose, initialize_config_dir

import run
from common.config.check import PARSER, ROOT, check_config, check_overrides

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:\w+=\S+ +)*(?:python3?|make|torchrun|accelerate|srun) ")
DELEGATED = {"model.checkpoint_import": "trainer.setup.import_checkpoint"}  # the code of the command is there
OPERATORS = ("&&", "||", "|", ";", ">", "&")

pytestmark = pytest.mark.usefixtures("fast_yaml")


def blocks(*languages: str) -> list[tuple[str, str]]:
    """Return the name of the page and the text of every fenced block in one of `languages`."""
    pages = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES if page.is_file()]
    return [(name, body) for name, text in pages for language, body in BLOCK.findall(text) if language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """Return the name of the page and the words of every command, up to the first shell operator."""
    found = []
    for page, body in blocks("", "bash", "sh", "console"):
        for line in body.replace("\\\n", " ").splitlines():
            text = line.strip().removeprefix("$ ")
            if COMMAND.match(text):
                words = [word for word in shlex.split(text, comments=True) if word != "…"]
                start = words.index("run.py") if "run.py" in words else 0
                end = next((i for i in range(start, len(words)) if words[i] in OPERATORS), len(words))
                found.append((page, words[:end]))
    return found


def marked(cases: list[tuple[str, list[str]]]) -> list:
    """Return the cases as parameters, each once, with the first page that has it."""
    pages = {tuple(words): page for page, words in reversed(cases)}
    return [pytest.param([*words], id=f"{page}: {' '.join(words)}"[:150]) for words, page in pages.items()]


RUNS = [(page, words[words.index("run.py") + 1 :]) for page, words in commands() if "run.py" in words]
MODULES = [(page, words[words.index("-m") + 1 :]) for page, words in commands() if "-m" in words]
MAKES = [(page, words[1:]) for page, words in commands() if words[0] == "make"]


@pytest.mark.parametrize("arguments", marked(RUNS))
def test_keys_and_values_of_run_py(arguments: list[str]) -> None:
    keys = [word for word in arguments if not word.startswith(("--config-path", "--config-name"))]
    overrides = [word for word in run.hydra_arguments(keys) if not word.startswith("-")]
    if len(keys) < len(arguments):
        return  # the other keys are in a file of the reader
    swept = [str(one.get_key_element()) for one in PARSER.parse_overrides(overrides) if one.is_sweep_override()]
    assert not swept or "--multirun" in arguments
    swept += ["trainer.exp_name"] * bool(swept)  # with the number of the job
    single = [word for word in overrides if word.partition("=")[0] not in swept]
    with initialize_config_dir(config_dir=str(ROOT), version_base="1.3"):
        check_config(compose("config", overrides=single))


class Parsed(Exception):
    """Arguments are valid."""


def parse_only(
    parser: argparse.ArgumentParser, *arguments: object, parse: Callable = argparse.ArgumentParser.parse_args
) -> None:
    parse(parser, *arguments)
    raise Parsed


@pytest.mark.parametrize("words", marked(MODULES))
def test_arguments_of_modules(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module, *arguments = words
    path = ROOT / module.replace(".", "/")
    if (path / "__main__.py").is_file():
        program = importlib.import_module(DELEGATED.get(module, f"{module}.__main__"))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Parsed):
            program.main()
        check_overrides([word for word in arguments if re.match(r"[a-z_.]+=", word)])
    elif (ROOT / module.partition(".")[0]).is_dir():
        source = path.with_suffix(".py").read_text(encoding="utf-8")
        assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("words", marked(MAKES))
def test_targets_of_make(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


@pytest.mark.parametrize("source", [pytest.param(body, id=page) for page, body in blocks("python")])
def test_python_snippets_compile(source: str) -> None:
    compile(source, "snippet", "exec")


def test_commands_were_found() -> None:
    assert len(RUNS) > 20
    assert len(MODULES) > 10
