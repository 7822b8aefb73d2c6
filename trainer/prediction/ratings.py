"""Predict people's ratings of pictures with a run of stage=ratings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from common.config.rules import RATINGS
from common.errors import UserError
from data.emotions import EMOTIONS
from data.loaders import EpochSampler, make_loader
from data.samples import Samples
from data.schema import Batch
from data.views import ViewDataset
from model.ratings import RatingNetwork
from model.vision import build_vision
from trainer.prediction.rows import Prediction
from trainer.runs.checkpoint import Checkpoint, load_network
from trainer.setup.parts import tensors_digest

VISION = "model.vision.pretrained_name"


class RatingPredictor:
    """Pictures → predictions whose only content is `vad`; see trainer.prediction.writer.AnyPredictor."""

    labels, temperature, expert, judge = EMOTIONS, 1.0, None, None
    language = SimpleNamespace(dtype=torch.float32)

    def __init__(self, network: RatingNetwork) -> None:
        self.network = network

    def __call__(self, batch: Batch, *, emotion: int | None = None) -> list[Prediction]:
        found = self.network(batch.frames, batch.frame_mask).tolist()
        return [Prediction(id, None, None, None, None, tuple(vad)) for id, vad in zip(batch.ids, found, strict=True)]


def load_rating_network(config: DictConfig, checkpoint: Checkpoint) -> RatingNetwork:
    """Return the network of a run of stage=ratings.

    Raises:
        UserError: weights that do not fit it, or an image encoder with other weights than in the training.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config.model.vision, resolve=True)
    trainable = settings.pop("trainable")
    network = RatingNetwork(build_vision(**settings), len(checkpoint.info[RATINGS]["dimensions"]))
    expected = network.own_state(with_vision=trainable or not network.vision.pretrained)
    load_network(network, expected, checkpoint.folder / "model.safetensors")
    stored = checkpoint.info["made_of"][VISION]["sha256"]
    if stored != tensors_digest(network.vision.state_dict()):
        raise UserError(
            f"{checkpoint.folder} was trained with other weights of {VISION}={config.model.vision.pretrained_name} "
            "than are loaded now: restore those, or train again"
        )
    return network.eval()


def rating_loader(
    config: DictConfig, network: RatingNetwork, samples: Samples, accelerator: Accelerator
) -> tuple[DataLoader[Batch], EpochSampler]:
    """Return a loader of the pictures, in order."""
    files = config.dataset.test_ds
    views = ViewDataset(
        samples, preprocess=network.vision.preprocess, seed=config.seed, max_pixels=config.dataset.max_pixels
    )
    processes = accelerator.num_processes
    return make_loader(
        views, batch_size=files.batch_size, num_workers=files.num_workers, shuffle=False, processes=processes
    )
