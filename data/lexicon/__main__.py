"""`python -m data.lexicon FILE`: describe a VAD lexicon file and measure its coverage of texts."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from common.cli import exit_status, run_program
from common.reading import expand_user
from data.readers.texts import read_texts
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import NAMES, SCALES, read_lexicon

EXAMPLES = ("happy", "murder", "calm", "terrified", "king")  # the columns are in order if these values make sense
MISSING_SHOWN = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.lexicon", description="Describe a VAD lexicon file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--scale", default="auto", help="auto, " + ", ".join(SCALES) + " (dataset.vad_scale)")
    parser.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        metavar="WORD,VALENCE,AROUSAL,DOMINANCE",
        help="names of the four columns, or their numbers from 1 (dataset.vad_columns)",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="report how many words of these files the lexicon covers: ArtEmis or COCO JSON, raw ArtEmis CSV, a CSV, "
        "TSV or JSON Lines table with a column text, or a plain file with one text per line",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="with --texts: also the coverage by the tokens of a language model: gpt2 or another name on the hub, a "
        "folder, a tokenizers JSON file, or a GGUF file (as dataset.tokenizer)",
    )
    arguments = sys.argv[1:] if argv is None else argv
    if "--scale" in arguments[:-1]:  # as --scale=-1..1, because argparse reads -1..1 as an option
        at = arguments.index("--scale")
        arguments = [*arguments[:at], "=".join(arguments[at : at + 2]), *arguments[at + 2 :]]
    options = parser.parse_args(arguments)
    if options.tokenizer and not options.texts:
        parser.error("--tokenizer needs --texts")

    def run() -> int:
        lexicon = read_lexicon(expand_user(options.file), scale=options.scale, columns=options.columns)
        print("\n".join(_describe(lexicon)))
        if options.texts:
            print("\n".join(_coverage(lexicon, options.texts, options.tokenizer)))
        return 0

    return exit_status(run)


def _describe(lexicon: Lexicon) -> list[str]:
    terms = list(lexicon.table)
    phrases = sum(" " in term for term in terms)
    words = f"{len(terms) - phrases:,}, and {phrases:,} terms of several words, which are not matched in texts"
    lines = [f"layout   {lexicon.layout}", f"scale    {lexicon.scale}, mapped to -1..1", f"words    {words}"]
    for name, values in zip(NAMES, zip(*lexicon.table.values(), strict=True), strict=True):
        lines.append(f"range    {name} {min(values):+.3f} to {max(values):+.3f}, mean {sum(values) / len(values):+.3f}")
    known = [word for word in EXAMPLES if lexicon.lookup(word)]
    for term in list(dict.fromkeys([*known, *terms]))[: len(EXAMPLES)]:
        v, a, d = lexicon.lookup(term)
        word = unicodedata.normalize("NFC", term)
        lines.append(f"example  {word}: valence {v:+.3f}  arousal {a:+.3f}  dominance {d:+.3f}")
    return lines + [f"note     {note}" for note in lexicon.notes]


def _coverage(lexicon: Lexicon, paths: list[Path], tokenizer: str | None) -> list[str]:
    from data.vad.align import WORD, VadAligner  # imports torch, which is slow and not needed to describe a file

    texts = [text for path in paths for text in read_texts(expand_user(path))]
    words = Counter(unicodedata.normalize("NFC", word).lower() for text in texts for word in WORD.findall(text))
    exact = {word for word in words if word in lexicon}
    inflected = {word for word in words if word not in exact and lexicon.lookup(word) is not None}
    total = words.total()
    missing = [(word, count) for word, count in words.most_common() if word not in exact and word not in inflected]
    examples = ", ".join(f"{word} {count:,}" for word, count in missing[:MISSING_SHOWN])
    names = ", ".join(map(str, paths))
    lines = [
        f"texts    {len(texts):,} of {names}: {total:,} words, {len(words):,} different ones",
        f"found    {_share(sum(words[w] for w in exact), total)} of the words themselves",
        f"         {_share(sum(words[w] for w in inflected), total)} by their lemma",
        f"missing  {_share(sum(count for _, count in missing), total)}, most frequent: {examples or 'none'}",
    ]
    if tokenizer:
        from data.tokenizer import load_tokenizer

        found = VadAligner(lexicon, load_tokenizer(tokenizer)).coverage(texts)
        count = int(found["lexicon_words"])
        lines += [
            f"pieces   {_share(found['split_words'], count)} of the {count:,} words found are split into tokens",
            f"aligned  {found['own']:.2%} have their own values at their last token",
            f"by piece {found['pieces_own']:.2%} would have them if each token were looked up on its own, "
            f"{found['pieces_other']:.2%} those of another word, {found['pieces_none']:.2%} none",
        ]
    return lines


def _share(part: float, total: int) -> str:
    return f"{part / max(1, total):.1%}"


if __name__ == "__main__":
    run_program(main)
