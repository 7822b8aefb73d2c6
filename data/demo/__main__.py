"""`python -m data.demo`: paint and write the built-in demo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import run_program
from common.errors import UserError
from data.demo import COUNTS, contact_sheet, write_demo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo", description="Paint and write the built-in demo.")
    parser.add_argument("--root", type=Path, default=Path("datasets/demo"), help="output folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=2021, help="seed of the pictures and texts (%(default)s)")
    for split, count in COUNTS.items():
        parser.add_argument(f"--num-{split}", type=int, default=count, help=f"number of {split} pictures (%(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="width and height in pixels (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="also write an overview with pictures of every emotion to this file")
    options = vars(parser.parse_args())
    root, sheet = options.pop("root"), options.pop("sheet")

    def show(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"\rpainting the demo: {done}/{total} pictures", end="\n" if done == total else "", flush=True)

    try:
        write_demo(root, **options, progress=show)
        if sheet:
            contact_sheet(seed=options["seed"]).save(sheet)
    except (UserError, OSError, ValueError) as error:  # Pillow raises ValueError for an unknown suffix
        print(error, file=sys.stderr)
        return 2
    print(f"the demo is in {root}")
    return 0


if __name__ == "__main__":
    run_program(main)
