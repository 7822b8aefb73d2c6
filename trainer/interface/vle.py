"""A trained run of VLE as an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from model.vle.processor import VLEProcessor
from trainer.interface.pictures import AnyPicture, as_list, read_picture
from trainer.runs.checkpoint import Checkpoint
from trainer.setup.device import make_accelerator
from trainer.vle.predict import NEEDED, answerer, require_text


class Vle:
    """VLE in memory, see docs/vle.md. A picture is a path, a PIL image or an array; a list gives a list of results."""

    def __init__(self, config: DictConfig, checkpoint: Checkpoint) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.processor = VLEProcessor.from_pretrained(checkpoint.folder)
        self._answer = answerer(config, checkpoint, self.processor, make_accelerator(config).device)

    def ask(
        self, images: AnyPicture | Sequence[AnyPicture], text: str | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return what predictions.json has about each picture: answers, the match, regions or emotions.

        Args:
            text: the question (stage=vle_vqa), or the text that is compared with the picture; stage=vle_emotion needs
                none.

        Raises:
            UserError: no text, one that is too long, or a picture that cannot be used.
        """
        self.config[NEEDED[self.config.stage][0]] = text
        require_text(self.config, self.checkpoint, self.processor)
        given, single = as_list(images)
        size, limit, found = self.config.dataset.test_ds.batch_size, self.config.dataset.max_pixels, []
        for start in range(0, len(given), size):
            pictures = [read_picture(image, max_pixels=limit).rgb for image in given[start : start + size]]
            found += self._answer(pictures)
        return found[0] if single else found
