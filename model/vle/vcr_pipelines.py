"""Pipelines of visual commonsense reasoning: an annotation of VCR → the scores of its four choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError, shorten
from model.vle.pipelines import VLEPipeline, check_grid
from model.vle.vcr import MAX_LENGTH, Choice, box_inputs, build_q2a, build_qa2r, name_objects, patch_range
from model.vle.vcr_heads import VLEForVCRQ2A, VLEForVCRQA2R
from model.weights.plain import read_object


class Row(NamedTuple):
    """One choice of one annotation."""

    image: Path
    choice: Choice
    patches: dict[int, list[int]]  # of each object


class VLEForVCRPipeline(VLEPipeline):
    """Base of the two: builds the texts, reads picture and boxes, scores the choices.

    Args:
        max_length: tokens of a text; longer ones are cut, see `build_q2a` and `build_qa2r`.
        carry_names: the names of persons go on from the annotation before, as published, so that scores depend on it;
            otherwise each annotation begins with the first name.
        grid: "stretch" lays the patches over the whole picture, as published; "crop" over its center, which is what
            the encoder receives of a picture that is not square.
    """

    needed: ClassVar[tuple[str, ...]] = ("img_fn", "metadata_fn", "objects", "question", "answer_choices")

    def __init__(
        self,
        *args: Any,
        max_length: int = MAX_LENGTH,
        carry_names: bool = False,
        grid: str = "stretch",
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.max_length, self.carry_names, self.grid, self.next_name = max_length, carry_names, check_grid(grid), 0

    def __call__(
        self,
        vcr_image_root: str | Path,
        meta_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        answer: int | None = None,
    ) -> list[dict[str, Tensor]]:
        """Return [{"score": logits of the choices, "pred": number of the best, (1,)}], one for each annotation.

        Args:
            vcr_image_root: folder of the pictures and of the JSON files with the boxes.
            meta_inputs: an annotation (a line of VCR's own files), or several; labels are not needed.
            answer: QA2R: number of the right answer, instead of the annotation's answer_label.

        Raises:
            UserError: a key or file is missing or damaged, or a text names an object that is not there.
        """
        samples = [meta_inputs] if isinstance(meta_inputs, Mapping) else list(meta_inputs)
        if not samples:
            raise UserError(f"{type(self).__name__} got an empty list: give at least one annotation")
        grouped = [self._rows(Path(vcr_image_root), sample, answer) for sample in samples]
        rows = [row for group in grouped for row in group]
        logits = self.score([row.image for row in rows], lambda numbers: self._encode([rows[n] for n in numbers]))
        scores = torch.cat(logits).split([len(group) for group in grouped])
        return [{"score": choices, "pred": choices.argmax(dim=-1, keepdim=True)} for choices in scores]

    def build(self, sample: Mapping[str, Any], names: list[str], answer: int | None) -> list[Choice]:
        """Return the texts of the choices."""
        raise NotImplementedError

    def _rows(self, root: Path, sample: Mapping[str, Any], answer: int | None) -> list[Row]:
        if missing := [key for key in self.needed if key not in sample]:
            raise UserError(
                f"annotation {sample.get('annot_id', '')} has no {', '.join(missing)}: give it as VCR has it"
            )
        names, following = name_objects(sample["objects"], self.next_name)
        self.next_name = following if self.carry_names else 0
        try:
            choices = self.build(sample, names, answer)
        except UserError as error:
            raise UserError(f"annotation {sample.get('annot_id', '')}: {error}") from error
        image, patches = root / sample["img_fn"], self._patches(root, sample)
        return [Row(image, choice, patches) for choice in choices]

    def _patches(self, root: Path, sample: Mapping[str, Any]) -> dict[int, list[int]]:
        """Return the patches of each object that has a box."""
        path, image = root / sample["metadata_fn"], root / sample["img_fn"]
        boxes = read_object(path).get("boxes") or []
        try:
            with Image.open(image) as picture:
                size = picture.size
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"the picture {image} cannot be read ({shorten(error)})") from error
        vision = self.model.config.vision_config
        part = self.vle_processor.visible_part(*size) if self.grid == "crop" else None
        try:
            return {
                number: patch_range(box, size, vision.image_size // vision.patch_size, part)
                for number, box in enumerate(boxes)
                if box
            }
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise UserError(f"{path}: each of its boxes must be [left, top, right, bottom] in pixels") from error

    def _encode(self, rows: Sequence[Row]) -> dict[str, Any]:
        texts = self.vle_processor.tokenizer.pad(
            {"input_ids": [row.choice.input_ids for row in rows]}, return_tensors="pt"
        )
        patches, box_types, text_types = zip(*(box_inputs(row.choice, row.patches) for row in rows), strict=True)
        return {**texts, "patch_ids": patches, "extend_token_type_ids": (box_types, text_types)}


class VLEForVCRQ2APipeline(VLEForVCRPipeline):
    """Which of four answers is right for a question about a picture."""

    model_class = VLEForVCRQ2A

    def build(self, sample: Mapping[str, Any], names: list[str], answer: int | None) -> list[Choice]:
        tokenizer = self.vle_processor.tokenizer
        return build_q2a(sample["question"], sample["answer_choices"], names, tokenizer, self.max_length)


class VLEForVCRQA2RPipeline(VLEForVCRPipeline):
    """Which of four rationales is right for a question and its right answer."""

    model_class = VLEForVCRQA2R
    needed = (*VLEForVCRPipeline.needed, "rationale_choices")

    def build(self, sample: Mapping[str, Any], names: list[str], answer: int | None) -> list[Choice]:
        answers, right = sample["answer_choices"], sample.get("answer_label") if answer is None else answer
        if not isinstance(right, int) or not 0 <= right < len(answers):
            raise UserError(
                f"the right answer is needed, 0 to {len(answers) - 1}, as answer_label or answer=, not {right}"
            )
        tokenizer = self.vle_processor.tokenizer
        return build_qa2r(
            sample["question"], answers[right], sample["rationale_choices"], names, tokenizer, self.max_length
        )
