"""Prepare ArtEmis or ArtELingo: clean the texts of the CSV, split the paintings, write the JSON files for training.

    python -m data.prepare artemis artemis_dataset_release_v0.csv --out artemis_v1
    python -m data.prepare artemis artemis_dataset_release_v0.csv --contrastive Contrastive.csv --out artemis_v2
    python -m data.prepare artemis artemis_preprocessed.csv --out artemis_v1
    python -m data.prepare artemis artelingo_release_lite.csv --language arabic --out artelingo_arabic

A column `split` of the CSV, or a file given as --split, decides; without either, the paintings are split at random. The
same rows and settings give the same JSON files to the byte, whatever the order of the rows. left_out.csv lists what was
left out; manifest.json has the settings, counts, corrections and digests.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.progress import progress
from data.languages import is_english, language_name, words
from data.prepare import cleaning, export
from data.prepare.export import Prepared
from data.prepare.language_choice import choose_languages
from data.prepare.rows import LeftOut, Row, read_rows
from data.prepare.splits import SUBSETS, Annotation, Shares, parts, split_rows
from data.readers.resolver import AMBIGUOUS, MISSING, ImageFolder
from data.split_names import REST, TEST, TRAIN, VAL, one_split_each

SPLITS = (TRAIN, VAL, TEST, REST)
MAX_TOKENS = 30  # in English; the 95th percentile of ArtEmis
PREPROCESSED = "artemis_preprocessed.csv"  # of ArtEmis' own scripts, in a folder of each part of v2


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "ArtEmis v1 or v2, ArtELingo: from raw CSV files to JSON files for training"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("artemis", help=summary, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("csv", type=Path, help="artemis_dataset_release_v0.csv, v2's combined_artemis.csv, artemis_preprocessed.csv, …")
    add("--contrastive", type=Path, metavar="CSV", help="v2's Contrastive.csv")
    add("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    add("--images", type=Path, metavar="FOLDER", help="WikiArt: leave out paintings without a file")
    add("--follow-links", action="store_true", help="follow symbolic links out of --images")
    add("--subset", choices=SUBSETS, help="v2: with a sample of v1 (combined, default), all of v1 (full), none (new)")
    add("--language", type=_names, metavar="NAME[,NAME]",
        help="to use of a CSV with a column language, or all; else the language of the texts")  # fmt: skip
    add("--split", nargs="+", metavar="TRAIN VAL TEST | FILE",
        help="shares of the paintings (0.85 0.05 0.10), or a CSV or JSON file with the split of each")  # fmt: skip
    add("--seed", type=int, default=2021, help="of the split (%(default)s)")
    add("--min-tokens", type=int, default=5, help="shorter explanations are left out (%(default)s); in Chinese, "
        "Thai and other scripts without spaces, a token is a character")  # fmt: skip
    add("--max-tokens", type=int, help="longer explanations are left out (30 in English, else no limit)")
    add("--max-repetition", type=int, default=40,
        help="paintings with more annotations form a part of their own, rest or test_40 (%(default)s)")  # fmt: skip
    add("--distribution", choices=("listed", "histogram"), default="listed",
        help="of an image's emotions: over its listed annotations, or over all in the CSV (%(default)s)")  # fmt: skip
    add("--spelling", choices=("on", "off"), default="off",
        help="correct misspelt words; about one correction in eight is another word (%(default)s)")  # fmt: skip
    add("--vocabulary", type=Path, metavar="FILE", help="words that are correct, first on each line (GloVe's file)")
    add("--overwrite", action="store_true", help="write into a folder that contains other files")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: a setting, an input file or the output folder cannot be used.
    """
    started = time.monotonic()
    _check(arguments)
    prepared = _prepare(arguments)
    try:
        export.publish(arguments.out.resolve(), lambda folder: export.write(folder, prepared, arguments))
    except OSError as error:
        raise UserError(f"--out {arguments.out} cannot be written ({error.strerror or error})") from None
    print(export.summary(prepared))
    print(f"\nwritten to {arguments.out} in {time.monotonic() - started:.0f} s; to train on it:\n")
    print(export.next_commands(prepared, arguments))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    seed, most = arguments.seed, arguments.max_repetition
    shortest, longest = arguments.min_tokens, arguments.max_tokens or max(MAX_TOKENS, arguments.min_tokens)
    arguments.split, arguments.split_file = _split_option(arguments.split)
    if arguments.csv.is_dir():
        arguments.csv /= PREPROCESSED
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: give a whole number from 0 to {2**32 - 1}")
    if not 1 <= shortest <= longest:
        raise UserError(f"--min-tokens {shortest} --max-tokens {arguments.max_tokens}: give 1 or more, in this order")
    if arguments.vocabulary is not None and arguments.spelling == "off":
        raise UserError(f"--vocabulary {arguments.vocabulary} is for --spelling on; give both or neither")
    if most < 1:
        raise UserError(f"--max-repetition {most}: give a whole number from 1")
    export.check_folder(arguments.out, overwrite=arguments.overwrite)


def _split_option(given: list[str] | None) -> tuple[list[float] | None, Path | None]:
    """Return the shares or the file of --split."""
    if given is None:
        return None, None
    if len(given) == 1:
        return None, Path(given[0])
    try:
        train, val, test = shares = [float(share) for share in given]
        valid = min(shares) >= 0 and math.isclose(train + val + test, 1, abs_tol=1e-6)
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"--split {' '.join(given)}: give three shares from 0 to 1 that sum to 1, or a file")
    return shares, None


def _prepare(arguments: argparse.Namespace) -> Prepared:
    try:
        images = arguments.images and ImageFolder(arguments.images, follow_links=arguments.follow_links)
    except UserError as error:
        raise UserError(f"--images: {error}") from None
    prepared = Prepared()
    rows = _read(arguments, prepared)
    # All paintings are split, so that splits depend neither on languages and text lengths nor on which images exist.
    splits = _splits(rows, prepared, arguments)
    rows = [row._replace(split=split) for row, split in zip(rows, splits, strict=True)]
    rows = choose_languages(rows, arguments.language, prepared, arguments.csv)
    annotations = _of_right_length(rows, _texts(rows, prepared, arguments), prepared, arguments)
    found = parts(annotations, subset=prepared.subset)
    if images is not None:
        found = _with_image(found, images, prepared)
    if not any(found.values()):
        raise UserError(f"{arguments.csv}: the settings leave out all of its {len(rows)} annotations")
    histograms = None
    if arguments.distribution == "histogram":
        histograms = defaultdict(Counter)
        for row in rows:
            histograms[row.name, row.language, row.new][row.emotion] += 1
    prepared.entries = {part: export.entries(chosen, histograms) for part, chosen in found.items() if chosen}
    train = prepared.entries.get(TRAIN, {})
    if several := {id: entry for id, entry in train.items() if len(set(entry["emotions"])) > 1}:
        prepared.entries["cl_train"] = several  # for contrastive training
    return prepared


def _texts(rows: Sequence[Row], prepared: Prepared, arguments: argparse.Namespace) -> list[str]:
    """Return the cleaned text of each row; only English ones are changed beyond their spaces."""
    english = [i for i, row in enumerate(rows) if is_english(row.language)]
    texts = [cleaning.plain(row.utterance) for row in rows]
    if english:
        cleaned = cleaning.clean(
            [rows[i].utterance for i in english],
            names={row.name for row in rows},
            vocabulary=arguments.vocabulary,
            spelling=arguments.spelling == "on",
        )
        prepared.corrections = cleaned.corrections
        for i, text in zip(english, cleaned.texts, strict=True):
            texts[i] = text
    return texts


def _names(text: str) -> list[str]:
    return [language_name(name) for name in text.split(",")]


def _read(arguments: argparse.Namespace, prepared: Prepared) -> list[Row]:
    rows = read_rows(arguments.csv, new=None, left_out=prepared.left_out)
    if arguments.contrastive is not None:
        if any(row.new for row in rows):
            raise UserError(f"{arguments.csv} contains v2 already; leave out --contrastive")
        rows += read_rows(arguments.contrastive, new=True, left_out=prepared.left_out)
    if not rows:
        first = next((f"line {item.line}: {item.reason}" for item in prepared.left_out), "it has only a header")
        raise UserError(f"{arguments.csv} has no usable row; {first}")
    prepared.is_v2 = any(row.new for row in rows)
    if arguments.subset is not None and not prepared.is_v2:
        raise UserError(f"--subset {arguments.subset} is for ArtEmis v2; give --contrastive too, or leave it out")
    return rows


def _splits(rows: Sequence[Row], prepared: Prepared, arguments: argparse.Namespace) -> list[str]:
    """Return the split of each row, or "": as in --split FILE, else as in the column, else drawn."""
    if arguments.split_file is not None:
        from data.prepare.split_files import SplitFile  # imported here: imports numpy, which --help does not need

        find, source = SplitFile(arguments.split_file), arguments.split_file
        splits = [find(row.name) for row in rows]
        if not any(splits):
            raise UserError(f"--split {source} has none of the paintings of {arguments.csv}, e.g. {rows[0].name}")
    elif all(row.split is None for row in rows):
        shares = Shares(*arguments.split) if arguments.split else Shares()
        prepared.shares, prepared.subset = shares, (arguments.subset or "combined") if prepared.is_v2 else None
        return split_rows(rows, shares=shares, seed=arguments.seed, max_repetition=arguments.max_repetition)
    else:
        source, splits = arguments.csv, [row.split for row in rows]
        if None in splits:
            raise UserError(f"only one of {source} and {arguments.contrastive} has a column split; give --split FILE")
    if option := "--subset" if arguments.subset else "--split with shares" if arguments.split else None:
        raise UserError(f"{option} draws a split, but {source} has its own; leave the option or the column out")
    one_split_each(((row.name, split) for row, split in zip(rows, splits, strict=True)), where=str(source))
    prepared.split_from = str(source)
    return splits


def _of_right_length(
    rows: Sequence[Row], texts: Sequence[str], prepared: Prepared, arguments: argparse.Namespace
) -> list[Annotation]:
    """Return the annotations that are neither too short nor too long, sorted by content."""
    annotations = []
    for row, text in zip(rows, texts, strict=True):
        length, longest = len(words(text)), arguments.max_tokens
        if longest is None:
            longest = max(MAX_TOKENS, arguments.min_tokens) if is_english(row.language) else length
        prepared.lengths.append(length)
        if not row.split:
            reason = "no split"
        elif length < arguments.min_tokens:
            reason = f"fewer than {arguments.min_tokens} tokens"
        elif length > longest:
            reason = f"more than {longest} tokens"
        else:
            annotations.append(Annotation(row.name, row.emotion, text, row.new, row.split, row.language))
            continue
        prepared.left_out.append(LeftOut(row.file, row.line, *row.name.split("/"), reason, row.language))
    return sorted(annotations)


def _with_image(
    found: dict[str, list[Annotation]], images: ImageFolder, prepared: Prepared
) -> dict[str, list[Annotation]]:
    """Return the annotations whose painting has an image."""
    names = sorted({annotation.name for annotations in found.values() for annotation in annotations})
    without = set()
    with progress(len(names), "images", unit="image") as bar:
        for name in names:
            bar.update()
            try:
                image = images.find(f"{name}.jpg")
                reason = {MISSING: "image missing", AMBIGUOUS: f"image ambiguous: {image.reason}"}.get(image.how)
            except UserError as error:
                reason = f"image cannot be used: {error}"
            if reason is not None:
                without.add(name)
                prepared.left_out.append(LeftOut("", None, *name.split("/"), reason))
    if names and len(without) == len(names):
        raise UserError(
            f"--images: {images.root} has none of the {len(names)} paintings, e.g. no {names[0]}.jpg; name the "
            "folder that holds the folders of the styles"
        )
    lost = Counter(a.language for part in SPLITS for a in found.get(part, ()) if a.name in without)
    prepared.dropped.update({(language, "no image"): count for language, count in lost.items()})
    return {part: [a for a in annotations if a.name not in without] for part, annotations in found.items()}
