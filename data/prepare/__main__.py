"""`python -m data.prepare artemis|images|check`: from what one downloads to what the readers read."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from data.prepare import artemis, check, images
from errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description="Makes annotations and images ready for training, and checks them."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="artemis|images|check")
    for module in (artemis, images, check):
        module.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files that the terminal's encoding lacks
    sys.exit(main())
