"""Paint the demo data set where it is missing."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from common.config.check import defaults
from common.errors import UserError
from common.progress import progress
from data.demo import write_demo
from trainer.setup.from_checkpoint import typed_keys


def prepare_data(config: DictConfig) -> None:
    """Write the demo's data where it is asked for and not there yet.

    Raises:
        UserError: the demo is asked for with somebody's own files.
    """
    if config.dataset.name != "demo":
        return
    root = Path(config.dataset.root)
    own = "dataset.root" in typed_keys() or str(root) == defaults()["dataset.root"]
    if config.mode != "train" and not own and not root.is_dir():
        raise UserError(
            f"the demo is not in {root}, where the checkpoint was trained on it: dataset.root=FOLDER names the folder "
            "that it is in, or is to be painted into"
        )
    for split, key in itertools.product(("train_ds", "validation_ds", "test_ds"), ("visual_dir", "json_path")):
        path = config.dataset[split][key]
        if path is not None and not Path(path).resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"dataset.{split}.{key}={path} is not the demo's: name the data, such as preset=artemis_v1 or "
                "preset=coco, or dataset.name=artemis"
            )
    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []  # none where the pictures are there already

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(total, f"painting the demo into {root}", unit="picture")))
            bars[0].update(done - bars[0].n)

        write_demo(root, num_train=config.dataset.demo_images, progress=advance)
