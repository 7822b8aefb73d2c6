"""VLE as a judge of whether a text belongs to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.progress import progress
from model.vle.heads import VLEForITM, VLEHead
from model.vle.pipelines import fuse_batches
from model.vle.processor import Picture, VLEProcessor
from trainer.runs.checkpoint import find_checkpoint

BATCH = 64  # texts


class Judge:
    """The matching head of a run, or of any folder that has one.

    Args:
        length: longest text, in tokens.
    """

    def __init__(self, model: VLEForITM, processor: VLEProcessor, *, length: int) -> None:
        self.model, self.processor, self.length = model.eval(), processor, length

    @classmethod
    def load(cls, name: str, exp_dir: Path, device: torch.device | str) -> Judge:
        """Load a run of stage=vle_itm or vle_pretrain by folder or name.

        Raises:
            UserError: there is no such run, or it is of another stage.
        """
        checkpoint = find_checkpoint(name, exp_dir)
        if checkpoint.config.get("stage") not in ("vle_itm", "vle_pretrain"):
            raise UserError(
                f"{checkpoint.folder} is of stage={checkpoint.config.get('stage')}: a judge needs a run of "
                "stage=vle_itm or stage=vle_pretrain"
            )
        model = VLEForITM.from_pretrained(checkpoint.folder).to(device).requires_grad_(False)
        return cls(model, VLEProcessor.from_pretrained(checkpoint.folder), length=checkpoint.config.vle.text_length)

    @torch.inference_mode()
    def scores(self, texts: Sequence[str], images: Sequence[Picture], *, show: str | None = None) -> Tensor:
        """Return (N,): the logit of "match" of each text with its picture; an object or path is encoded once.

        Args:
            show: label of a progress bar; None: without one.
        """
        tokenizer, found = self.processor.tokenizer, torch.empty(len(texts))

        def encode(rows: Sequence[int]) -> dict[str, Tensor]:
            options = {"padding": True, "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            encoded = tokenizer([texts[row] for row in rows], **options)
            return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

        with progress(len(texts), show or "", unit="pair", enabled=show is not None) as bar:
            for rows, fused in fuse_batches(self.model.vle, self.processor, images, encode, BATCH):
                logits = self.model.score(fused).float()
                found[rows] = (logits[:, 1] - logits[:, 0]).cpu()
                bar.update(len(rows))
        return found

    def matrix(self, texts: Sequence[str], images: Sequence[Picture], *, show: str | None = None) -> np.ndarray:
        """Return the scores of every text (rows) with every picture (columns)."""
        pairs = [(text, image) for image in images for text in texts]
        scores = self.scores([text for text, _ in pairs], [image for _, image in pairs], show=show)
        return scores.view(len(images), len(texts)).T.numpy()


def matcher_of(network: VLEHead) -> VLEForITM:
    """Return the network with its matching head, which shares all weights."""
    if isinstance(network, VLEForITM):
        return network
    with torch.device("meta"):
        found = VLEForITM(network.config)
    found.vle, found.itm_score = network.vle, network.itm_score
    return found
