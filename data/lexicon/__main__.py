"""`python -m data.lexicon FILE`: what a VAD lexicon file was recognised as, and what it covers of somebody's texts."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from common.cli import exit_status, run_program
from common.reading import expanded
from data.vad.lexicon import Lexicon
from data.vad.lexicon_files import NAMES, SCALES, read_lexicon

EXAMPLES = 5
MISSING_SHOWN = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.lexicon", description="Says what a VAD lexicon file holds.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--scale", default="auto", help="auto, " + ", ".join(SCALES) + " (dataset.vad_scale)")
    parser.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        metavar="WORD,VALENCE,AROUSAL,DOMINANCE",
        help="heads of the four columns, or their numbers from 1 (dataset.vad_columns)",
    )
    parser.add_argument(
        "--texts",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="say how much of these the lexicon covers: ArtEmis or COCO JSON, raw ArtEmis CSV, a CSV, TSV or JSON "
        "lines with a column text, or a plain file of a text per line",
    )
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="with --texts: also what GPT-2's pieces leave of it (gpt2, folder or file)"
    )
    options = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    if options.tokenizer and not options.texts:
        parser.error("--tokenizer needs --texts")
    return exit_status(lambda: _show(options))


def _show(options: argparse.Namespace) -> int:
    lexicon = read_lexicon(expanded(options.file), scale=options.scale, columns=options.columns)
    print("\n".join(_described(lexicon)))
    if options.texts:
        print("\n".join(_covered(lexicon, options.texts, options.tokenizer)))
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """`--scale -1..1` as `--scale=-1..1`: argparse would take -1..1 for an option."""
    if "--scale" not in arguments[:-1]:
        return arguments
    at = arguments.index("--scale")
    return [*arguments[:at], "=".join(arguments[at : at + 2]), *arguments[at + 2 :]]


def _described(lexicon: Lexicon) -> list[str]:
    terms = list(lexicon.table)
    phrases = sum(" " in term for term in terms)
    lines = [f"layout   {lexicon.layout}"]
    lines += [f"scale    {lexicon.scale}, mapped to -1..1"]
    lines += [
        f"words    {len(terms) - phrases:,}, and {phrases:,} terms of several words, which are never found in texts"
    ]
    for name, values in zip(NAMES, zip(*lexicon.table.values(), strict=True), strict=True):
        lines.append(f"range    {name} {min(values):+.3f} to {max(values):+.3f}, mean {sum(values) / len(values):+.3f}")
    for term in terms[:: max(1, len(terms) // EXAMPLES)][:EXAMPLES]:
        v, a, d = lexicon.table[term]
        shown = unicodedata.normalize("NFC", term)
        lines.append(f"example  {shown}: valence {v:+.3f}  arousal {a:+.3f}  dominance {d:+.3f}")
    return lines + [f"note     {note}" for note in lexicon.notes]


def _covered(lexicon: Lexicon, paths: list[Path], tokenizer: str | None) -> list[str]:
    from data.readers.texts import read_texts  # brings nothing that describing a file needs
    from data.vad.align import WORD, VadAligner

    texts = [text for path in paths for text in read_texts(expanded(path))]
    words = Counter(unicodedata.normalize("NFC", word).lower() for text in texts for word in WORD.findall(text))
    written = {word for word in words if word in lexicon}
    inflected = {word for word in words if word not in written and lexicon.lookup(word) is not None}
    total = words.total()
    missing = [(word, count) for word, count in words.most_common() if word not in written and word not in inflected]
    shown = ", ".join(f"{word} {count:,}" for word, count in missing[:MISSING_SHOWN])
    names = ", ".join(map(str, paths))
    lines = [f"texts    {len(texts):,} of {names}: {total:,} words, {len(words):,} different ones"]
    lines += [f"found    {_share(sum(words[w] for w in written), total)} of the words as they stand"]
    lines += [f"         {_share(sum(words[w] for w in inflected), total)} by their lemma"]
    lines += [f"missing  {_share(sum(count for _, count in missing), total)}, most often: {shown or 'none'}"]
    if tokenizer:
        from data.text import load_tokenizer

        lines += _pieces(VadAligner(lexicon, load_tokenizer(tokenizer)).coverage(texts))
    return lines


def _pieces(found: dict[str, float]) -> list[str]:
    count = int(found["lexicon_words"])
    return [
        f"pieces   {_share(found['split_words'], count)} of the {count:,} words found are split into several tokens",
        f"aligned  {found['own']:.2%} have their own values at the token that completes them",
        f"by piece {found['pieces_own']:.2%} would have them if every token was looked up by itself, "
        f"{found['pieces_other']:.2%} another word's, {found['pieces_none']:.2%} none",
    ]


def _share(part: float, total: int) -> str:
    return f"{part / max(1, total):.1%}"


if __name__ == "__main__":
    run_program(main)
