"""VLE as a judge of whether a text belongs to a picture, and of which parts of the picture it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.progress import progress
from data.images import ImageError, open_image
from model.vle.encoder import VLEModelOutput
from model.vle.heads import VLEForITM, VLEForPBC, VLEForPreTraining, VLEHead
from model.vle.pipelines import fuse_batches
from model.vle.processor import Picture, PictureView, VLEProcessor
from trainer.runs.checkpoint import find_checkpoint
from trainer.runtime.processes import grouped

BATCH = 64  # texts
OPENED = 8  # pictures in memory, in their own size
NETWORKS = {"vle_itm": VLEForITM, "vle_pbc": VLEForPBC, "vle_pretrain": VLEForPreTraining}

Box = tuple[float, float, float, float]


class Judge:
    """A VLE with the head for matching, that for regions, or both.

    Args:
        length: longest text, in tokens.
        folder: of its checkpoint.
    """

    def __init__(self, model: VLEHead, processor: VLEProcessor, *, length: int, folder: Path | None = None) -> None:
        self.model, self.processor, self.length, self.folder = model.eval(), processor, length, folder

    @classmethod
    def load(cls, name: str, exp_dir: Path, device: torch.device | str, *, key: str) -> Judge:
        """Load a run of stage=vle_itm, vle_pbc or vle_pretrain by folder or name.

        Args:
            key: of the configuration, for the message of an error.

        Raises:
            UserError: there is no such run, or it is of another stage.
        """
        checkpoint = find_checkpoint(name, exp_dir, key=key)
        stage = checkpoint.config.get("stage", "caption")
        if stage not in NETWORKS:
            raise UserError(
                f"{key}={name}: {checkpoint.folder} is of stage={stage}, and a judge needs a run of "
                "stage=vle_pretrain or stage=vle_itm (or stage=vle_pbc, for regions alone)"
            )
        model = NETWORKS[stage].from_pretrained(checkpoint.folder).to(device).requires_grad_(False)
        processor = VLEProcessor.from_pretrained(checkpoint.folder)
        return cls(model, processor, length=checkpoint.config.vle.text_length, folder=checkpoint.folder)

    @property
    def matches(self) -> bool:
        """Whether it has the head for matching, which `scores` and `matrix` need."""
        return hasattr(self.model, "itm_score")

    @property
    def points(self) -> bool:
        """Whether it has the head for regions, which `regions` needs."""
        return hasattr(self.model, "pbc_classifier")

    @torch.inference_mode()
    def scores(self, texts: Sequence[str], images: Sequence[Picture], *, show: str | None = None) -> Tensor:
        """Return (N,): the logit of "match" of each text with its picture; an object or path is encoded once.

        Args:
            show: label of a progress bar; None: without one.
        """
        found = torch.empty(len(texts))
        with progress(len(texts), show or "", unit="pair", enabled=show is not None) as bar:
            for rows, fused in self._fused(texts, images, pooled_only=True):
                logits = VLEForITM.score(self.model, fused).float()
                found[rows] = (logits[:, 1] - logits[:, 0]).cpu()
                bar.update(len(rows))
        return found

    def matrix(self, texts: Sequence[str], images: Sequence[Picture], *, show: str | None = None) -> np.ndarray:
        """Return the scores of every text (rows) with every picture (columns)."""
        pairs = [(text, image) for image in images for text in texts]
        scores = self.scores([text for text, _ in pairs], [image for _, image in pairs], show=show)
        return scores.view(len(images), len(texts)).T.numpy()

    @torch.inference_mode()
    def regions(self, texts: Sequence[str], image: Picture) -> tuple[np.ndarray, Box]:
        """Return (N, rows, columns): the probability that a text is about a patch of the picture.

        Also the part of the picture that the patches cover: left, top, width and height, as shares.
        """
        found = torch.cat(
            [
                VLEForPBC.score(self.model, fused).float().softmax(dim=-1)[..., 1].cpu()
                for _, fused in self._fused(texts, [image] * len(texts))
            ]
        )
        side = round(found.shape[1] ** 0.5)
        left, top, right, bottom = PictureView(self.processor).part(*self.processor.open(image).size)
        return found.view(-1, side, side).numpy(), (left, top, right - left, bottom - top)

    def _fused(
        self, texts: Sequence[str], images: Sequence[Picture], *, pooled_only: bool = False
    ) -> Iterator[tuple[list[int], VLEModelOutput]]:
        """Yield text numbers and the encoder's outputs for them."""

        def encode(rows: Sequence[int]) -> dict[str, Tensor]:
            options = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            encoded = self.processor.tokenizer([texts[row] for row in rows], **options)
            return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

        return fuse_batches(self.model.vle, self.processor, images, encode, BATCH, pooled_only=pooled_only)


class ImageJudge:
    """Scores texts with images, which are given by id; only the text itself is read, no emotion.

    Args:
        paths: of the images, by id.
        max_pixels: of the largest image that is opened.
    """

    def __init__(self, judge: Judge, paths: Mapping[str, Path], *, max_pixels: int) -> None:
        self.judge, self.paths, self.max_pixels = judge, paths, max_pixels

    def __call__(self, ids: Sequence[str], texts: Sequence[str]) -> list[float]:
        """Return the logit of "match" of each text with its image; equal pairs are computed once.

        Raises:
            UserError: an image cannot be opened.
        """
        pairs = [*zip(ids, texts, strict=True)]
        scores: dict[tuple[str, str], float] = {}
        for some in grouped(dict.fromkeys(ids), OPENED):
            pictures = {id: self._open(id) for id in some}
            new = [pair for pair in dict.fromkeys(pairs) if pair[0] in pictures]
            found = self.judge.scores([text for _, text in new], [pictures[id] for id, _ in new])
            scores |= zip(new, found.tolist(), strict=True)
        return [scores[pair] for pair in pairs]

    def _open(self, id: str) -> Picture:
        try:
            return open_image(self.paths[id], max_pixels=self.max_pixels)
        except ImageError as error:
            raise UserError(
                f"trainer.test.rank_by=vle cannot open {self.paths[id]}: {error}; choose another trainer.test.rank_by"
            ) from error
