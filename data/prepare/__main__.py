"""`python -m data.prepare COMMAND`: prepare downloaded data, and check it."""

from __future__ import annotations

import argparse

from common.cli import exit_status, run_program
from data.prepare import artemis, coco, images, instructions, published, regions, vqa
from data.prepare.check import command as check


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description="Prepare annotations and images for training, and check them."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (artemis, published, coco, vqa, regions, images, check, instructions):
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    interrupted = getattr(arguments, "interrupted", "interrupted")
    return exit_status(lambda: arguments.run(arguments), interrupted=interrupted)


if __name__ == "__main__":
    run_program(main)
