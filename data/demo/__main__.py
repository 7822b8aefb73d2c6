"""`python -m data.demo`: paint and write the built-in demo."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.errors import UserError
from data.demo import COUNTS, contact_sheet, write_demo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo", description="Paint and write the built-in demo.")
    parser.add_argument("--root", type=Path, default=Path("datasets/demo"), help="folder to write (%(default)s)")
    parser.add_argument("--seed", type=int, default=2021, help="decides every picture and text (%(default)s)")
    for split, count in COUNTS.items():
        parser.add_argument(f"--num-{split}", type=int, default=count, help=f"{split} pictures (%(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="width and height in pixels (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="also draw some pictures of every emotion to this PNG")
    options = vars(parser.parse_args())
    root, sheet = options.pop("root"), options.pop("sheet")

    def show(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            print(f"\rpainting the demo: {done}/{total} pictures", end="\n" if done == total else "", flush=True)

    try:
        write_demo(root, **options, progress=show)
        if sheet:
            contact_sheet(seed=options["seed"]).save(sheet)
    except (UserError, OSError, ValueError) as error:  # Pillow: ValueError for an unknown file ending
        print(error, file=sys.stderr)
        return 2
    print(f"the demo is in {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
