"""Conversations about pictures, to tune a vision-language model on: from the annotations, or written by another model.

    python -m data.prepare instructions preset=artemis_v1 --out datasets/artemis_v1/instructions
    python -m data.prepare instructions preset=artemis_v1 --out FOLDER --endpoint https://HOST/v1 --model NAME

Takes the keys of run.py that name the data. Three kinds: categorical (which of the data's emotions? the answer is its
label alone), reasoning (why is it felt? "because" and the explanation), observation (what is there to see and feel? the
explanation without the emotion's name and whatever is made from that name).

With --endpoint the pictures themselves are sent, to that address only, and a model behind an OpenAI-compatible
interface is asked for reasoning and observation: one request for each picture with an emotion that most of its
annotators chose. A key is taken from the environment variable EMOSCRIBE_API_KEY. Answers that name the emotion or are
not of the form asked for are asked for again, then dropped. Broken off, the same command asks for what is missing.

In FOLDER, for each split: instructions_SPLIT.jsonl, by image id (trainers shuffle), manifest_SPLIT.json (counts,
settings, digests), and answers_SPLIT.jsonl, what the model answered. With the same data, settings and answers the files
are the same to the byte. Status: 0, or 1 if the model gave no answer for some pictures, or 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.prepare.parallel import count

SPLITS = {"train": "train_ds", "val": "validation_ds", "test": "test_ds"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "conversations for instruction tuning, from annotations or by a vision-language model"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("instructions", help=summary, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY=VALUE", help="the data, as for run.py, see config.yaml")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    add("--split", action="append", choices=SPLITS, help="may be given several times (train)")
    add("--seed", type=int, default=0, help="of the choice among the ways to ask (%(default)s)")
    add("--categorical", choices=("each", "dominant"), default="each",
        help="one for each annotation, or for the dominant emotion of each image (%(default)s)")  # fmt: skip
    add("--system", choices=("on", "off"), default="on", help="begin with a system turn (%(default)s)")
    add("--limit", type=count, metavar="N", help="take the first N images of each split only")
    _add_endpoint(parser.add_argument_group("a model that writes"))
    parser.set_defaults(run=run)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--endpoint", metavar="URL", help="of an OpenAI-compatible interface, up to /chat/completions; sends pictures")
    add("--model", metavar="NAME", help="as the endpoint calls it")
    add("--parallel", type=count, default=4, metavar="N", help="requests at a time (%(default)s)")
    add("--max-side", type=count, default=1024, help="longest side of a picture that is sent, in pixels (%(default)s)")
    add("--max-tokens", type=count, default=400, help="longest answer in tokens (%(default)s)")
    add("--tries", type=count, default=3, help="times that a usable answer is asked for (%(default)s)")
    add("--retries", type=int, default=6, help="of a request that is told to wait, fails or hangs (%(default)s)")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request (%(default)s)")
    add("--allow-http", action="store_true", help="send pictures and key unencrypted to another machine")


def run(arguments: argparse.Namespace) -> int:
    """The command; its exit status.

    Raises:
        UserError: keys, options, data, the output folder or the endpoint cannot be used.
    """
    from data.prepare.instructions.command import prepare

    try:
        return prepare(arguments)
    except KeyboardInterrupt:
        print("interrupted; what a model answered is kept, and the same command goes on from there", file=sys.stderr)
        return 130
