"""Conversations about pictures for tuning a vision-language model, from annotations or written by another model.

    python -m data.prepare instructions preset=artemis_v1 --out datasets/artemis_v1/instructions
    python -m data.prepare instructions preset=artemis_v1 --out FOLDER --endpoint https://HOST/v1 --model NAME

Takes the keys of run.py that name the data. Three kinds: categorical (which of the data's emotions? answered by the
label alone), reasoning (why? answered by "because" and the explanation), observation (what is there to see and feel?
answered by the explanation without the emotion's name and the words derived from it).

With --endpoint, a model behind an OpenAI-compatible API (pip install openai) writes reasoning and observation: one
request for each picture with an emotion that most of its annotators chose. The pictures are sent to that address only.
The environment variable EMOSCRIBE_API_KEY holds the key. Answers that name the emotion or have another form are
requested again, then dropped. After an interruption, the same command requests what is missing.

Writes into FOLDER, for each split: instructions_SPLIT.jsonl, by image id (trainers shuffle), manifest_SPLIT.json
(counts, settings, digests), and answers_SPLIT.jsonl, the model's answers. The same data, settings and answers give the
same bytes. Exit status: 0, or 1 if the model gave no answer for some pictures, or 2 for wrong usage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data.prepare.instructions.collect import KEPT, add_options
from data.prepare.parallel import count

SPLITS = {"train": "train_ds", "val": "validation_ds", "test": "test_ds"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "conversations for instruction tuning, from annotations or by a vision-language model"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("instructions", help=summary, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("keys", nargs="*", metavar="KEY=VALUE", help="the data, as for run.py, see config.yaml")
    add("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    add("--split", action="append", choices=SPLITS, help="may be given several times (train)")
    add("--seed", type=int, default=0, help="decides which prompt each conversation gets (%(default)s)")
    add("--categorical", choices=("each", "dominant"), default="each",
        help="one for each annotation, or for the dominant emotion of each image (%(default)s)")  # fmt: skip
    add("--system", choices=("on", "off"), default="on", help="begin with a system turn (%(default)s)")
    add("--limit", type=count, metavar="N", help="only the first N images of each split")
    model = parser.add_argument_group("a model that writes")
    add_options(model)
    model.add_argument("--prompt_file", type=Path, metavar="FILE",
        help="your own request for observation and reasoning, with {label}, {labels} and {words}")  # fmt: skip
    model.add_argument("--tries", type=count, default=3, help="answers per picture until one is usable (%(default)s)")
    parser.set_defaults(run=run, interrupted=KEPT)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: keys, options, data, the output folder or the endpoint cannot be used.
    """
    from data.prepare.instructions.command import prepare

    return prepare(arguments)
