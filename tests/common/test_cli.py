"""Output of commands: escape sequences in texts and file names never reach the terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.cli import exit_status, printable
from common.config.check import ROOT
from common.errors import UserError

ATTACKS = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "question": "\x1b[6n",
    "screen": "\x1b[2J\x1b[H",
    "device": "\x1bP+q544e\x1b\\",
    "8 bit": "\x9b2J\x9d0;x\x9c",
    "backspace": "safe\b\b\b\bevil",
    "bell": "\a",
    "nothing": "\0",
    "direction": "exe.\u202egnp",
    "isolate": "\u2066x\u2069",
    "delete": "\x7f",
    "line up": "\x1b[A",
    "hidden": "\x1b[8m",
    "bold": "\x1b[1m",
    "erase": "\x1b[K",
    "carriage return": "evil\rsafe",
    "right-to-left mark": "\u200f",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_control_characters_are_escaped(name):
    shown = printable(f"a {ATTACKS[name]} b")
    assert shown.startswith("a ") and shown.endswith(" b") and printable(shown) == shown
    assert all(char.isprintable() for char in shown)


@pytest.mark.parametrize(
    "text", ["", "two\nlines\twith tabs", "café 絵 🎨 الحرف", "\r 50%|##", "\n\x1b[A\x1b[A", "a\n\x1b[1mhead\x1b[0m\n"]
)
def test_text_and_progress_bars_are_unchanged(text):
    assert printable(text) == text


PROGRAM = """
import sys, warnings
from common.cli import exit_status, run_program
from common.errors import UserError
from common.progress import progress
def main():
    print("out \\x1b]0;x\\x07 \\udcff é")
    print("one", "two", sep="\\x1b[2J", file=sys.stderr)
    sys.stderr.writelines(["lines \\x9b2J\\n"])
    warnings.warn("warning \\x1b[6n")
    with progress(2, "bar \\x1b[2J", unit="x") as bar:
        bar.update(2)
    return exit_status(fail)
def fail():
    raise UserError("file \\x1b]0;x\\x07.jpg")
run_program(main)
"""


def test_all_output_is_escaped():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 2
    assert out == "out \\x1b]0;x\\x07 \\udcff é\n"
    for expected in (
        "one\\x1b[2Jtwo\n",
        "lines \\x9b2J\n",
        "warning \\x1b[6n",
        "bar \\x1b[2J: 100%",
        "error: file \\x1b]0;x\\x07.jpg\n",
    ):
        assert expected in err
    assert "\x1b" not in err.replace("\x1b[0m", "") and "\x9b" not in err  # \x1b[0m: tqdm resets the color


def test_command_line_arguments_are_escaped():
    done = subprocess.run(
        [sys.executable, "-m", "data.lexicon", "/tmp/\x1b[2Jgone.csv"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2 and b"/tmp/\\x1b[2Jgone.csv" in done.stderr and b"\x1b" not in done.stderr


def test_long_messages_are_shortened(capsys):
    def command() -> int:
        raise UserError(f"FILE: the value {'x' * 10**6} is none\nanother line")

    assert exit_status(command) == 2
    printed = capsys.readouterr().err
    assert len(printed) < 2000 and printed.startswith("error: FILE: the value xx") and " … x" in printed
    assert printed.endswith("xx is none\nerror: another line\n")


def test_error_after_a_progress_bar_starts_a_new_line():
    program = PROGRAM.replace("return exit_status(fail)", 'sys.stderr.write("\\r 50%|##"); return exit_status(fail)')
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False, text=True)
    assert "\r 50%|##\nerror: file" in done.stderr or " 50%|##\nerror: file" in done.stderr


def test_closed_pipe_is_silent():
    help = f"{sys.executable} run.py --help | head -1"
    done = subprocess.run(help, shell=True, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.stdout.startswith("EmoScribe") and done.stderr == ""
