"""Find everything that is wrong with a data set, and describe its splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.config.rules import RATINGS
from common.errors import UserError
from common.progress import progress
from common.reading import expand_user
from data.emotions import EMOTIONS
from data.prepare.check.images import ImageStatistics, open_all
from data.prepare.check.texts import TextChecker, TextStatistics
from data.readers.split import configured_labels, read_split, source_of
from data.round_trip import lost_letters
from data.samples import Samples
from data.schema import Sample
from data.text import Template
from data.tokenizer import load_tokenizer
from data.vad.align import VadAligner
from data.vad.lexicon_files import configured_lexicon

SPLITS = ("train_ds", "validation_ds", "test_ds")
KINDS = {  # kinds of problems in the order of reports, with their meaning
    "file": "splits that cannot be read",
    "entry": "faulty entries of annotation files; they are left out",
    "missing": "images without a file",
    "ambiguous": "images whose name matches several files",
    "corrupt": "images that cannot be opened",
    "leak": "images that are in another split too",
    "duplicate": "images that occur twice in their split",
    "tokenizer": "texts cannot be tokenized",
    "letters": "letters that the tokenizer cannot write",
    "lexicon": "the VAD lexicon cannot be used",
    "coverage": "splits without a word that is in the VAD lexicon",
    "lexicon rows": "rows of the VAD lexicon that are not used",
    "dark": "images that are nearly black, as data of 12 bits in a file of 16 look; they are used",
    "renamed": "images found under another spelling of their name; they are used",
}
NOTES = frozenset({"lexicon rows", "dark", "renamed"})  # kinds that are no faults
AMBIGUOUS = ("may stand for", "might be meant")  # in reasons from data/readers/resolver.py and data/readers/split.py
SETTINGS = (
    *("name", "tokenizer", "max_length", "vad_lexicon", "vad_scale", "vad_columns", "emotions", "max_pixels"),
    "follow_links",
)


class Problem(NamedTuple):
    split: str  # "" for all of them
    kind: str  # a key of KINDS
    id: str  # of the image, or ""
    path: str  # of the file in question
    reason: str


@dataclass(slots=True)
class SplitReport:
    """One split; None where something could not be determined."""

    json_path: str | None  # None for data without an annotation file
    visual_dir: str
    entries: int | None = None  # faulty entries of the annotation file
    listed: int | None = None  # images of its other entries
    missing: int | None = None
    ambiguous: int | None = None
    renamed: int | None = None
    images: ImageStatistics | None = None  # None: not opened
    texts: TextStatistics | None = None

    @property
    def usable(self) -> int | None:
        return self.texts.images if self.texts else None

    @property
    def corrupt(self) -> int | None:
        return len(self.images.corrupt) if self.images else None


@dataclass(slots=True)
class Report:
    settings: dict[str, Any]  # the keys that the report depends on
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, in the order of KINDS."""
        counts = Counter(problem.kind for problem in self.problems)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    @property
    def faults(self) -> int:
        """Number of problems without the notes."""
        return sum(count for kind, count in self.counts.items() if kind not in NOTES)

    @property
    def omissions(self) -> list[str]:
        """What the report lacks, and why."""
        reasons = {
            "The images were not opened (--no-decode).": any(s.texts and not s.images for s in self.splits.values()),
            "Neither tokens nor VAD values were counted: texts cannot be tokenized.": "tokenizer" in self.counts,
            "No VAD values were counted: the lexicon cannot be used.": "lexicon" in self.counts,
            "No VAD values were counted: dataset.vad_lexicon is not set.": self.settings["dataset.vad_lexicon"] is None,
        }
        return [reason for reason, holds in reasons.items() if holds]


def check_dataset(dataset: Mapping[str, Any], *, decode: bool, workers: int) -> Report:
    """Read every split that has annotations, as training does.

    Args:
        dataset: the section `dataset` of the configuration, as plain values.
        decode: open every image, in `workers` processes.
    """
    report = Report({f"dataset.{key}": dataset.get(key) for key in SETTINGS})
    checker = _text_checker(dataset, report.problems)
    occurrences = _Occurrences(by_id=dataset["name"] not in ("table", RATINGS))  # ids of tables are file names
    for split in SPLITS:
        if (found := _split_report(dataset, split)) is None:
            continue
        report.splits[split] = found
        if (samples := _read(dataset, split, found, report.problems)) is None:
            continue
        if decode:
            found.images = open_all(samples, dataset, description=f"opening the images of {split}", workers=workers)
            for index, reason in sorted(found.images.corrupt.items()):
                sample = samples[index]
                report.problems.append(Problem(split, "corrupt", sample.id, str(sample.path), reason))
            for index, brightest in found.images.dark.items():
                reason, sample = f"its brightest value is {brightest} of 255", samples[index]
                report.problems.append(Problem(split, "dark", sample.id, str(sample.path), reason))
        with progress(len(samples), f"reading the texts of {split}", unit="image") as bar:
            usable = _usable(samples, split, report, occurrences, bar)
            found.texts = checker.check(usable, labels=samples.labels, explained=samples.has_texts)
        if found.texts.coverage.get("words") and not found.texts.coverage["lexicon_words"]:
            reason = "no word of its texts is in the VAD lexicon, which may be of another language"
            report.problems.append(Problem(split, "coverage", "", str(dataset["vad_lexicon"]), reason))
        if checker.template is not None and (reason := _lost_letters(checker.template, samples, split)):
            report.problems.append(Problem(split, "letters", "", source_of(dataset, split), reason))
    return report


def _lost_letters(template: Template, samples: Samples, split: str) -> str | None:
    try:
        return lost_letters(template, samples, where=split)
    except UserError as error:
        return str(error)


def _split_report(dataset: Mapping[str, Any], split: str) -> SplitReport | None:
    """Return an empty report; None for a split without data."""
    json_path, visual_dir = dataset[split]["json_path"], dataset[split]["visual_dir"]
    if dataset["name"] == RATINGS:  # one table may be for all splits
        train = dataset["train_ds"]
        json_path, visual_dir = json_path or train["json_path"], visual_dir or train["visual_dir"]
    if dataset["name"] != "emotion_folder":
        return None if json_path is None else SplitReport(json_path, visual_dir or str(Path(json_path).parent))
    if split == "validation_ds":  # may be a share of the training folder
        visual_dir = visual_dir or dataset["train_ds"]["visual_dir"]
    return None if visual_dir is None else SplitReport(json_path, visual_dir)


def _read(dataset: Mapping[str, Any], split: str, found: SplitReport, problems: list[Problem]) -> Samples | None:
    """Return the samples whose file exists; None if the split cannot be read."""
    faults: list[str] = []
    source, read = source_of(dataset, split), None
    try:
        read = read_split(dataset, split, faults=faults)
    except UserError as error:
        problems.append(Problem(split, "file", "", source, str(error)))
    problems += [Problem(split, "entry", "", source, fault) for fault in faults]
    if read is None:
        return None
    kinds = Counter()
    for image in read.skipped:
        kind = "ambiguous" if any(words in image.reason for words in AMBIGUOUS) else "missing"
        kinds[kind] += 1
        problems.append(Problem(split, kind, image.id, str(image.path), image.reason))
    problems += [Problem(split, "renamed", i.id, str(i.path), f"listed as {i.name!r}") for i in read.renamed]
    found.listed, found.entries = len(read.samples) + len(read.skipped), len(faults)
    found.missing, found.ambiguous, found.renamed = kinds["missing"], kinds["ambiguous"], len(read.renamed)
    return read.samples


def _usable(samples: Samples, split: str, report: Report, occurrences: _Occurrences, bar) -> Iterator[Sample]:
    """Yield the samples that are not corrupt; add those that occurred before to the problems."""
    images = report.splits[split].images or ImageStatistics()
    for index, sample in enumerate(samples):
        bar.update()
        if index not in images.corrupt:
            report.problems += occurrences.add(split, sample, images.digests.get(index))
            yield sample


def _text_checker(dataset: Mapping[str, Any], problems: list[Problem]) -> TextChecker:
    """Return a checker, without tokenizer or lexicon if they cannot be loaded."""
    template = aligner = None
    if dataset["name"] == RATINGS:  # pictures without texts
        return TextChecker(None, None, with_emotions=False)
    try:
        tokenizer, labels = load_tokenizer(str(dataset["tokenizer"])), configured_labels(dataset) or EMOTIONS
        template = Template(tokenizer, max_length=dataset["max_length"], labels=labels)
    except UserError as error:
        problems.append(Problem("", "tokenizer", "", str(dataset["tokenizer"]), str(error)))
    if dataset["vad_lexicon"] is not None and template is not None:
        try:
            lexicon = configured_lexicon(dataset)
            aligner = VadAligner(lexicon, template.tokenizer)
            problems += [Problem("", "lexicon rows", "", str(dataset["vad_lexicon"]), note) for note in lexicon.notes]
        except UserError as error:
            problems.append(Problem("", "lexicon", "", str(expand_user(dataset["vad_lexicon"])), str(error)))
    return TextChecker(template, aligner, with_emotions=dataset["emotions"] is not False)


class _Occurrences:
    """Where each image occurred first, by its id and by its content."""

    def __init__(self, *, by_id: bool) -> None:
        self._by_id = by_id
        self._ids: dict[str, str] = {}  # id → split
        self._contents: dict[bytes, tuple[str, str]] = {}  # digest, or path → split and id
        self._languages: dict[bytes, set[str]] = {}  # digest, or path → languages, each of which has the picture once

    def add(self, split: str, sample: Sample, digest: bytes | None) -> list[Problem]:
        """Record an image; return the problem if it occurred before."""
        path = str(sample.path)
        content = digest or path.encode("utf-8", "surrogateescape")
        first = self._contents.setdefault(content, (split, sample.id))
        languages = self._languages.setdefault(content, set())
        is_new = sample.language not in languages
        languages.add(sample.language)
        home = self._ids.setdefault(sample.id, split) if self._by_id else split
        if first[0] != split or not is_new:
            kind = "duplicate" if first[0] == split else "leak"
            return [Problem(split, kind, sample.id, path, f"the same picture as image {first[1]!r} of {first[0]}")]
        if home != split:
            return [Problem(split, "leak", sample.id, path, f"{home} has an image of this id too")]
        return []
