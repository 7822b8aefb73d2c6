"""Make the processor of the demo's VLE: a tokenizer of its sentences and questions, and CLIP's picture settings.

    python -m data.demo.vocabulary --out data/demo/backbones

The sentences are about scenes of a stream of their own, as in data/demo/pretrain.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import open_clip
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from common.files import write_json
from data.demo.backbones import write_checksums
from data.demo.pretrain import IMAGE_SIZE, sentences
from data.demo.questions import QUESTIONS
from data.demo.sentences import NOUNS

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]  # ids 0 to 3 as in DeBERTa-v3
TOKENS = 1200


def questions() -> Iterator[str]:
    """Yield every phrasing with every noun."""
    for phrasings in QUESTIONS.values():
        for phrasing in phrasings:
            for one, _ in NOUNS.values():
                yield from (phrasing.format(noun=noun) for noun in (*one, "subject"))


def train_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """Return a tokenizer of byte pairs with DeBERTa's special tokens; unigrams would split the frequent words."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    marks = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=marks)
    return tokenizer


def write_processor(folder: Path, *, texts: int, seed: int) -> None:
    """Write tokenizer.json and preprocessor_config.json."""

    def everything() -> Iterator[str]:
        yield from sentences(texts, seed)
        for _ in range(10):
            yield from questions()

    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(everything()).save(str(folder / "tokenizer.json"))
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    settings = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": side, "resample": 3}
    settings |= {"image_mean": open_clip.OPENAI_DATASET_MEAN, "image_std": open_clip.OPENAI_DATASET_STD}
    write_json(folder / "preprocessor_config.json", settings)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.demo.vocabulary", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="gets the folder vle")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--texts", type=int, default=20_000, help="sentences (%(default)s)")
    options = parser.parse_args()
    write_processor(options.out / "vle", texts=options.texts, seed=options.seed)
    write_checksums(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
