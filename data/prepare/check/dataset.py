"""Everything that is wrong with a dataset, and what its splits are like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tqdm import tqdm

from common.errors import UserError
from common.progress import progress
from common.reading import expanded
from data.emotions import EMOTIONS
from data.prepare.check.images import ImageStatistics, open_all
from data.prepare.check.texts import TextChecker, TextStatistics
from data.readers.split import labels_asked_for, read_split, source_of
from data.samples import Samples
from data.schema import Sample
from data.text import Template, load_tokenizer
from data.vad.align import VadAligner
from data.vad.lexicon_files import configured_lexicon

SPLITS = ("train_ds", "validation_ds", "test_ds")
# Kinds of problems, in the order of reports, and what they mean.
KINDS = {
    "file": "cannot be read at all",
    "entry": "faulty entries of the annotation file, left out",
    "missing": "images that are not there",
    "ambiguous": "images whose name may stand for several files",
    "corrupt": "images that cannot be opened",
    "leak": "images that are in another split too",
    "duplicate": "images that stand twice in their split",
    "tokenizer": "texts cannot be made into tokens",
    "lexicon": "words cannot be given their valence, arousal and dominance",
    "renamed": "images found under another spelling of their name, and used",
}
AMBIGUOUS = (
    "may stand for",
    "might be meant",
)  # what the reasons of data/readers/resolver.py and data/readers/split.py say then
NOTES = frozenset({"renamed"})  # worth knowing, and nothing wrong


class Problem(NamedTuple):
    split: str  # "" for all of them
    kind: str  # a key of KINDS
    id: str  # of the image, or ""
    path: str  # of the file that it is about
    reason: str


@dataclass(slots=True)
class SplitReport:
    """One split; what could not be found out is None."""

    json_path: str | None  # None where the folders say it all
    visual_dir: str
    entries: int | None = None  # faults in the annotation file
    listed: int | None = None  # images in the annotation file whose entry is sound
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
    splits: dict[str, SplitReport] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # the keys that had a say

    @property
    def omissions(self) -> list[str]:
        """What the report says nothing of, and why."""
        said = {problem.kind for problem in self.problems}
        reasons = {
            "The images were not opened (--no-decode)": any(s.texts and not s.images for s in self.splits.values()),
            "Texts were not made into tokens, and words not looked up": "tokenizer" in said,
            "No word was looked up: the lexicon cannot be used": "lexicon" in said,
            "No word was looked up: there is no dataset.vad_lexicon": self.settings["dataset.vad_lexicon"] is None,
        }
        return [f"{reason}." for reason, holds in reasons.items() if holds]

    @property
    def wrong(self) -> bool:
        return any(problem.kind not in NOTES for problem in self.problems)


def check_dataset(dataset: Mapping[str, Any], *, decode: bool, workers: int) -> Report:
    """Reads every split that has annotations, as training does.

    Args:
        dataset: the section `dataset` of the configuration, as plain values.
        decode: open every image, in `workers` processes.
    """
    keys = ("name", "tokenizer", "max_length", "vad_lexicon", "vad_scale", "vad_columns", "emotions", "max_pixels")
    report = Report(settings={f"dataset.{key}": dataset[key] for key in keys})
    texts = _text_checker(dataset, report.problems)
    sightings = _Sightings(by_id=dataset["name"] != "table")  # a table's ids are names, which every folder may have
    for split in SPLITS:
        if (found := _report_of(dataset, split)) is None:
            continue
        report.splits[split] = found
        samples = _read(dataset, split, found, report.problems)
        if samples is None:
            continue
        if decode:
            found.images = open_all(samples, dataset, description=f"opening the images of {split}", workers=workers)
            for index, reason in sorted(found.images.corrupt.items()):
                sample = samples[index]
                report.problems.append(Problem(split, "corrupt", sample.id, str(sample.path), reason))
        digests = found.images.digests if found.images else {}
        for index, sample in _usable(samples, found):
            report.problems += sightings.add(split, sample, digests.get(index))
        with progress(len(samples), f"reading the texts of {split}", unit="image") as bar:
            usable = (sample for _, sample in _usable(samples, found, bar))
            found.texts = texts.check(usable, labels=samples.labels, explained=samples.has_texts)
    return report


def _report_of(dataset: Mapping[str, Any], split: str) -> SplitReport | None:
    """An empty one; None for a split that is not given."""
    json_path, visual_dir = dataset[split]["json_path"], dataset[split]["visual_dir"]
    if dataset["name"] != "emotion_folder":
        return None if json_path is None else SplitReport(json_path, visual_dir)
    if split == "validation_ds":  # what is kept for it lies where the rest does
        visual_dir = visual_dir or dataset["train_ds"]["visual_dir"]
    return None if visual_dir is None else SplitReport(json_path, visual_dir)


def _read(dataset: Mapping[str, Any], split: str, found: SplitReport, problems: list[Problem]) -> Samples | None:
    """The samples whose file is there; None where the split cannot be read."""
    faults: list[str] = []
    read = None
    try:
        read = read_split(dataset, split, faults=faults)
    except UserError as error:
        problems.append(Problem(split, "file", "", source_of(dataset, split), str(error)))
    problems += [Problem(split, "entry", "", source_of(dataset, split), fault) for fault in faults]
    if read is None:
        return None
    skipped = [(_kind(image.reason), image) for image in read.skipped]
    problems += [Problem(split, kind, image.id, str(image.path), image.reason) for kind, image in skipped]
    problems += [
        Problem(split, "renamed", image.id, str(image.path), f"listed as {image.name!r}") for image in read.renamed
    ]
    found.listed = len(read.samples) + len(skipped)
    found.missing = sum(kind == "missing" for kind, _ in skipped)
    found.ambiguous = len(skipped) - found.missing
    found.renamed, found.entries = len(read.renamed), len(faults)
    return read.samples


def _kind(reason: str) -> str:
    return "ambiguous" if any(words in reason for words in AMBIGUOUS) else "missing"


def _usable(samples: Samples, found: SplitReport, bar: tqdm | None = None) -> Iterator[tuple[int, Sample]]:
    """Index and sample, without those that could not be opened."""
    corrupt = found.images.corrupt if found.images else {}
    for index, sample in enumerate(samples):
        if bar is not None:
            bar.update()
        if index not in corrupt:
            yield index, sample


def _text_checker(dataset: Mapping[str, Any], problems: list[Problem]) -> TextChecker:
    """Without tokenizer or lexicon where they cannot be had."""
    template = aligner = None
    try:
        tokenizer, labels = load_tokenizer(str(dataset["tokenizer"])), labels_asked_for(dataset) or EMOTIONS
        template = Template(tokenizer, max_length=dataset["max_length"], labels=labels)
    except UserError as error:
        problems.append(Problem("", "tokenizer", "", str(dataset["tokenizer"]), str(error)))
    if dataset["vad_lexicon"] is not None and template is not None:
        try:
            aligner = VadAligner(configured_lexicon(dataset), template.tokenizer)
        except UserError as error:
            path = expanded(dataset["vad_lexicon"])
            problems.append(Problem("", "lexicon", "", str(path), str(error)))
    return TextChecker(template, aligner, with_emotions=dataset["emotions"] is not False)


class _Sightings:
    """Which image was met first, under its id and by its content."""

    def __init__(self, *, by_id: bool) -> None:
        self.by_id = by_id
        self.ids: dict[str, str] = {}  # id → split
        self.contents: dict[bytes, tuple[str, str]] = {}  # digest, or path → split and id

    def add(self, split: str, sample: Sample, digest: bytes | None) -> list[Problem]:
        """The problem, if it is one, that this image was met before."""
        content = digest or str(sample.path).encode("utf-8", "surrogateescape")
        same = self.contents.setdefault(content, (split, sample.id))
        home = self.ids.setdefault(sample.id, split) if self.by_id else split
        path = str(sample.path)
        if same != (split, sample.id):
            first, other = same
            kind = "duplicate" if first == split else "leak"
            return [Problem(split, kind, sample.id, path, f"the same picture as image {other!r} of {first}")]
        if home != split:
            return [Problem(split, "leak", sample.id, path, f"{home} has an image of this id too")]
        return []
