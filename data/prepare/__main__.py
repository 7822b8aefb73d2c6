"""`python -m data.prepare artemis|images|check|instructions`: from what one downloads to what the readers read."""

from __future__ import annotations

import argparse

from common.cli import exit_status, run_program
from data.prepare import artemis, images, instructions
from data.prepare.check import command as check


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description="Makes annotations and images ready for training, and checks them."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="artemis|images|check|instructions")
    for module in (artemis, images, check, instructions):
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    return exit_status(lambda: arguments.run(arguments))


if __name__ == "__main__":
    run_program(main)
