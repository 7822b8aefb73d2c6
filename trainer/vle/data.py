"""Data of a VLE stage: the pictures of a split and the texts beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import DataLoader

from common.config.rules import NOT_NEEDED
from common.errors import UserError
from common.reading import expand_user
from data.loaders import EpochSampler, make_loader
from data.pairs import PairBatch, PairDataset, collate_pairs
from data.readers.picture_rows import ANSWERS, PictureRows, read_answers
from data.readers.vcr import VcrRows
from data.samples import Samples
from data.schema import Skipped
from model.vle.processor import PictureView, VLEProcessor
from trainer.setup.loading import load_samples
from trainer.vle.texts import (
    Captions,
    EmotionTexts,
    Encoder,
    MatchTexts,
    PretrainTexts,
    RegionTexts,
    VcrTexts,
    VqaTexts,
)

ROWS = ".jsonl"  # suffix of a file of picture rows
NEED_ROWS = ("vle_vqa", "vle_pbc")
REGIONS = 4  # texts of a picture and step, stage=vle_pbc


@dataclass(slots=True)
class Split:
    """Pictures of a split, and their annotations."""

    name: str
    source: Samples | PictureRows | VcrRows

    @property
    def samples(self) -> Samples:
        """The ids and image paths."""
        return self.source if isinstance(self.source, Samples) else self.source.samples


def read_source(config: DictConfig, split: str, skipped: list[Skipped]) -> Split:
    """Read a split: picture rows (*.jsonl), VCR's annotations, or any data set with captions or emotions.

    Raises:
        UserError: see the readers; a stage that needs picture rows and gets something else.
    """
    files, stage = config.dataset[split], config.stage
    path = None if files.json_path is None else expand_user(files.json_path)
    rows = path is not None and path.suffix == ROWS
    if stage == "vle_vcr":
        source: Any = VcrRows(*paths_of(config, split))
    elif rows and stage != "vle_emotion":
        source = PictureRows(*paths_of(config, split), strict=config.dataset.strict)
    elif stage in NEED_ROWS:
        raise UserError(
            f"stage={stage} needs picture rows, and dataset.{split}.json_path={files.json_path} is none: name a .jsonl "
            "file, as `python -m data.prepare vqa` or `python -m data.prepare regions` writes it (docs/data.md)"
        )
    else:
        paths_of(config, split, optional=NOT_NEEDED.get(config.dataset.name, ()))
        source = load_samples(config, split, skipped)
    if not isinstance(source, Samples):
        skipped.extend(source.skipped)
    return Split(split, source)


def paths_of(config: DictConfig, split: str, *, optional: Collection[str] = ()) -> tuple[Path, ...]:
    """Return the file of annotations and the folder of pictures; raise UserError if a needed one is not named."""
    files, found = config.dataset[split], []
    for key in ("json_path", "visual_dir"):
        if files[key] is not None:
            found.append(expand_user(files[key]))
        elif f"dataset.{split}.{key}" not in optional:
            raise UserError(f"stage={config.stage} needs dataset.{split}.{key}=PATH")
    return tuple(found)


def read_labels(config: DictConfig, train: Split) -> tuple[list[str] | None, list[str]]:
    """Return the answers or emotions, and the names of the objects that pre-training hides.

    Raises:
        UserError: no file of answers, or no emotions.
    """
    if config.stage == "vle_vqa":
        path = config.vle.answers or Path(config.dataset.train_ds.json_path).with_name(ANSWERS)
        return read_answers(expand_user(path)), []
    if config.stage == "vle_emotion":
        if not train.source.has_emotions:
            raise UserError("stage=vle_emotion needs emotions, and the images of dataset.train_ds have none")
        return [*train.source.labels], []
    if config.stage == "vle_pretrain" and isinstance(train.source, PictureRows):
        return None, sorted({found["name"] for row in train.source for found in row["objects"]})
    return None, []


@dataclass
class PairData:
    """Loaders of a stage.

    Args:
        labels, objects: see read_labels.
    """

    config: DictConfig
    processor: VLEProcessor
    grid: int  # patches in each row and column
    labels: list[str] | None = None
    objects: list[str] = field(default_factory=list)

    def loader(self, split: Split, *, processes: int = 1) -> tuple[DataLoader[PairBatch], EpochSampler]:
        """Return the loader and its sampler; the training split is shuffled, if configured."""
        files = self.config.dataset[split.name]
        dataset = PairDataset(
            split.samples,
            view=PictureView(self.processor),
            texts=self.texts(split),
            seed=self.config.seed,
            max_pixels=self.config.dataset.max_pixels,
        )
        return make_loader(
            dataset,
            batch_size=files.batch_size,
            num_workers=files.num_workers,
            shuffle=split.name == "train_ds" and files.shuffle,
            processes=processes,
            collate_fn=collate_pairs,
        )

    def texts(self, split: Split) -> Callable:
        """Return the texts of a picture, see trainer.vle.texts."""
        config, stage, source = self.config, self.config.stage, split.source
        encode, training = Encoder(self.processor.tokenizer, config.vle.text_length), split.name == "train_ds"
        if stage == "vle_vqa":
            return VqaTexts(source, encode, {answer: label for label, answer in enumerate(self.labels)})
        if stage == "vle_vcr":
            return VcrTexts(source, encode, self.grid, rationales=config.vle.vcr == "qa2r")
        if stage == "vle_pbc":
            return RegionTexts(source, encode, self.grid, config.seed, REGIONS if training else None)
        if stage == "vle_emotion":
            return EmotionTexts(source, encode, config.seed, config.vle.reasons if training else 0.0)
        match = MatchTexts(Captions(source), encode, config.seed, same_emotion=config.vle.same_emotion)
        if stage == "vle_itm":
            return match
        rows = source if isinstance(source, PictureRows) else None
        objects = {name: label for label, name in enumerate(self.objects)}
        return PretrainTexts(match, self.grid, config.vle.masked, objects, rows)
