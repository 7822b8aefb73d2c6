"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, computed by pycocoevalcap (the COCO caption evaluation).

BLEU is corpus BLEU with the closest reference length, METEOR is version 1.5, CIDEr is CIDEr-D times 10 with the
inverse document frequencies of the given references; all as in Chen et al., 2015 (arXiv 1504.00325).
Scores depend on the set of images and on the tokenizer, so the results name both.
"""

from __future__ import annotations

import contextlib
import io
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.progress import progress
from data.languages import words
from trainer.metrics.bootstrap import Statistic
from trainer.metrics.caption_counts import bleu_counts, caption_statistics
from trainer.metrics.java import Java, JavaError, find_java, run_java
from trainer.metrics.meteor import meteor_in_background
from trainer.metrics.spice import spice_scores

METRICS = ("bleu", "meteor", "rouge_l", "cider")
ALL_METRICS = (*METRICS, "spice")  # SPICE needs minutes, Java 8 to 14, and a parser that is not on PyPI
NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
TOKENIZERS = {  # choice -> its name in the results
    "ptb": "PTB (Stanford)",
    "whitespace": "whitespace",
    "words": "words, and characters in scripts without spaces",
}
PTB, WHITESPACE, WORDS = TOKENIZERS.values()
PTB_SECONDS = 120.0
PTB_SECONDS_PER_TEXT = 0.01
PTB_MEMORY = "-Xmx512M"
SHOWN_FROM = 5000  # captions of several systems from which a progress bar is shown

LINE_BREAKERS = {"Cc", "Zl", "Zp", "Cs"}  # control, line and paragraph separators; lone surrogates cannot be encoded

Texts = dict[str, list[str]]  # image id -> its texts


@dataclass(slots=True)
class CaptionScores:
    """Scores of the whole set, keyed as in NAMES, and per image.

    counts: bleu_counts and meteor_counts by image, from which trainer.metrics.caption_counts scores any subset.
    """

    scores: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    tokenizer: str = PTB
    clip: str | None = None  # name of the model, for the scores of trainer.metrics.clipscore
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, ids: Sequence[str], score: float, each: Sequence[float]) -> None:
        self.scores[name] = _finite(score)
        for image, value in zip(ids, each, strict=True):
            self.per_image[image][name] = _finite(value)

    def count(self, name: str, counts: Mapping[str, list[float]]) -> None:
        for image, numbers in counts.items():
            self.counts.setdefault(image, {})[name] = numbers

    def statistics(self, ids: Sequence[str]) -> dict[str, Statistic]:
        """Return the statistics of the scores for trainer.metrics.bootstrap, over these images."""
        return caption_statistics([self.per_image.get(i, {}) | self.counts.get(i, {}) for i in ids], list(self.scores))


def caption_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "ptb",
    spice_parser: Path | None = None,
) -> CaptionScores:
    """Score one caption per image against that image's references.

    Args:
        predictions: image id → caption; an empty caption scores 0.
        references: image id → one or more references; empty ones do not count.
        metrics: any of ALL_METRICS.
        tokenizer: "ptb", as for COCO, with punctuation removed; or "whitespace", lower-case words between white space,
            as for ArtEmis, whose texts have no punctuation; or "words" of data/languages.py, for any language but
            English, as METEOR and SPICE are for English alone and are left out.
        spice_parser: folder of SPICE's parser (see trainer.metrics.spice).

    Without a working Java, words are split at white space, and METEOR and SPICE are left out, as recorded in
    `tokenizer` and `notes`. All Java processes end with this call.

    Raises:
        UserError: different ids, an image without a reference, nothing to score, unknown metric or tokenizer.
    """
    return system_scores(
        {"": predictions}, references, metrics=metrics, tokenizer=tokenizer, spice_parser=spice_parser
    )[""]


def system_scores(
    systems: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: str = "ptb",
    spice_parser: Path | None = None,
) -> dict[str, CaptionScores]:
    """Return `caption_scores` of each system on the same images, with one run of every Java program for all of them."""
    first = next(iter(systems.values()))
    for predictions in systems.values():
        check_ids(predictions, references)
    for kind, given, known in (("metric", metrics, ALL_METRICS), ("tokenizer", [tokenizer], TOKENIZERS)):
        if unknown := [name for name in given if name not in known]:
            raise UserError(f"{kind} {unknown[0]!r} is unknown; choose from {', '.join(known)}")
    notes = []
    if tokenizer == "words":
        english = [name for name in ("meteor", "spice") if name in metrics]
        metrics = [name for name in metrics if name not in english]
        notes += [f"{name.upper()} left out: for English texts only" for name in english]
    java = find_java() if tokenizer == "ptb" or "meteor" in metrics else None
    results = [CaptionScores(per_image={image: {} for image in first}, tokenizer=TOKENIZERS[tokenizer], notes=[*notes])
               for _ in systems]  # fmt: skip
    _, targets = clean(first, references)
    captions = {image: [_one_line(texts[image]) for texts in systems.values()] for image in targets}
    captions, targets = _tokenize(captions, targets, java, results)
    hypotheses = [{image: [texts[i]] for image, texts in captions.items()} for i in range(len(systems))]
    with contextlib.ExitStack() as running:
        meteor = None
        if "meteor" in metrics:
            with _noting_failure("METEOR", results):
                meteor = running.enter_context(meteor_in_background(java, hypotheses, targets))
        _python_scores(hypotheses, targets, metrics, results)
        if meteor is not None:
            with _noting_failure("METEOR", results):
                for result, (score, each, counts) in zip(results, meteor(), strict=True):
                    result.add("METEOR", [*targets], score, each)
                    result.count("meteor_counts", counts)
    if "spice" in metrics:
        with _noting_failure("SPICE", results):
            _spice(hypotheses, targets, spice_parser, results)
    for scores in (scores for result in results for scores in (result.scores, *result.per_image.values())):
        scores |= {name: scores.pop(name) for name in NAMES if name in scores}  # in the order of NAMES
    return dict(zip(systems, results, strict=True))


@contextlib.contextmanager
def _noting_failure(name: str, results: Sequence[CaptionScores]) -> Iterator[None]:
    """Replace this metric by a note if Java fails."""
    try:
        yield
    except JavaError as error:
        for result in results:
            result.notes.append(f"{name} left out: {error}")


def _python_scores(
    hypotheses: Sequence[Texts], targets: Texts, metrics: Sequence[str], results: Sequence[CaptionScores]
) -> None:
    shown = len(results) > 1 and len(results) * len(targets) >= SHOWN_FROM
    with progress(len(results), "BLEU, ROUGE-L, CIDEr", unit="text", enabled=shown) as bar:
        for texts, result in zip(hypotheses, results, strict=True):
            for name, score in PYTHON_METRICS.items():
                if name in metrics:
                    score(texts, targets, result)
            bar.update()


def _spice(hypotheses: Sequence[Texts], targets: Texts, parser: Path | None, results: Sequence[CaptionScores]) -> None:
    joined = {f"{i} {image}": texts for i, system in enumerate(hypotheses) for image, texts in system.items()}
    references = {f"{i} {image}": texts for i in range(len(results)) for image, texts in targets.items()}
    _, each = spice_scores(joined, references, parser=parser)
    for i, result in enumerate(results):
        part = each[i * len(targets) : (i + 1) * len(targets)]
        result.add("SPICE", [*targets], sum(part) / len(part), part)


def check_ids(predictions: Mapping[str, object], references: Mapping[str, object]) -> None:
    """Raise UserError unless both have the same ids, at least one."""
    if not predictions and not references:
        raise UserError("no captions to score: the predictions and the references are both empty")
    for lacking, have, other in (
        ([i for i in predictions if i not in references], "a prediction", "reference"),
        ([i for i in references if i not in predictions], "references", "prediction"),
    ):
        if lacking:
            raise UserError(
                f"image {lacking[0]!r} has {have} but no {other} ({len(lacking)} such images); "
                "score exactly the images that were captioned"
            )


def clean(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> tuple[Texts, Texts]:
    """Return both as lists of single lines without empty references; raise UserError if an image has none."""
    hypotheses = {image: [_one_line(text)] for image, text in predictions.items()}
    targets = {image: [line for text in references[image] if (line := _one_line(text))] for image in predictions}
    empty = [image for image, texts in targets.items() if not texts]
    if empty:
        raise UserError(f"image {empty[0]!r} has no reference text ({len(empty)} such images); leave it out")
    return hypotheses, targets


def _one_line(text: str) -> str:
    """Return the text as one line with single spaces, as both Java programs read one text per line."""
    return " ".join("".join(" " if unicodedata.category(c) in LINE_BREAKERS else c for c in text).split())


def _finite(value: float) -> float:
    value = float(value)
    return value if math.isfinite(value) else 0.0  # METEOR and CIDEr are NaN if all captions are empty


def _tokenize(
    hypotheses: Texts, targets: Texts, java: Java | None, results: Sequence[CaptionScores]
) -> tuple[Texts, Texts]:
    """Tokenize with the tokenizer of the results, or at white space with a note if Java fails."""
    try:
        return tokenize(hypotheses, targets, results[0].tokenizer, java)
    except JavaError as error:
        for result in results:
            result.tokenizer = WHITESPACE
            result.notes.append(
                f"the PTB tokenizer is left out: {error}; words are split at white space instead, so scores differ "
                "from published ones"
            )
        return tokenize(hypotheses, targets, WHITESPACE, java)


def tokenize(hypotheses: Texts, targets: Texts, tokenizer: str, java: Java | None) -> tuple[Texts, Texts]:
    """Return both with single spaces between tokens; `tokenizer` is one of TOKENIZERS' names.

    Raises:
        JavaError: with PTB, if Java is missing or fails.
    """
    if tokenizer == PTB:
        return _ptb(java, hypotheses, targets)
    split = words if tokenizer == WORDS else lambda text: text.lower().split()
    return tuple(
        {image: [" ".join(split(text)) for text in texts] for image, texts in group.items()}
        for group in (hypotheses, targets)
    )


def _ptb(java: Java | None, hypotheses: Texts, targets: Texts) -> tuple[Texts, Texts]:
    """Tokenize with one run of Stanford's tokenizer, and remove the punctuation that pycocoevalcap removes."""
    from pycocoevalcap.tokenizer import ptbtokenizer as installed

    jar = Path(installed.__file__).with_name(installed.STANFORD_CORENLP_3_4_1_JAR)
    arguments = [PTB_MEMORY, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    texts = [text for group in (hypotheses, targets) for texts in group.values() for text in texts]
    seconds = PTB_SECONDS + PTB_SECONDS_PER_TEXT * len(texts)
    out = run_java(java, arguments, seconds=seconds, stdin=("\n".join(texts) + "\n").encode())
    lines = out.decode(errors="replace").split("\n")
    if len(lines) != len(texts) + 1 or lines[-1]:
        raise JavaError(f"Java returned {len(lines) - 1} lines for {len(texts)} texts")
    tokenized = (" ".join(w for w in line.rstrip().split(" ") if w not in installed.PUNCTUATIONS) for line in lines)
    return tuple({i: [next(tokenized) for _ in texts] for i, texts in group.items()} for group in (hypotheses, targets))


def _bleu(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    with contextlib.redirect_stdout(io.StringIO()):
        scores, each = Bleu(4).compute_score(targets, hypotheses, verbose=0)
    filled = [bool(hypotheses[i][0]) for i in targets]  # the scorer gives an empty caption 1e-6 instead of 0
    for n, (score, values) in enumerate(zip(scores, each, strict=True), start=1):
        values = [value if full else 0.0 for value, full in zip(values, filled, strict=True)]
        result.add(f"BLEU-{n}", list(targets), score if any(filled) else 0.0, values)
    result.count("bleu_counts", {i: bleu_counts(hypotheses[i][0], texts) for i, texts in targets.items()})


def _rouge(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    _, each = Rouge().compute_score(targets, hypotheses)
    # The scorer reads an empty caption as one empty word, which matches a reference of punctuation only.
    each = np.array([v if hypotheses[i][0] else 0.0 for i, v in zip(targets, each, strict=True)])
    result.add("ROUGE-L", list(targets), np.mean(each), each)


def _cider(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in targets.values() for text in texts):
        result.notes.append("CIDEr left out: no reference has a word")
        return
    if len(targets) == 1:
        result.notes.append("CIDEr of a single image is always 0: it weighs words by how few images have them")
    score, each = Cider().compute_score(targets, hypotheses)
    result.add("CIDEr", list(targets), score, each)


PYTHON_METRICS = {"bleu": _bleu, "rouge_l": _rouge, "cider": _cider}
