"""Paint the demo data set if it does not exist."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from common.config.check import defaults
from common.config.rules import VLE_STAGES, VLM
from common.errors import UserError
from common.progress import progress
from data.demo import write_demo
from data.demo.backbones import check_backbones
from data.demo.questions import write_rows
from trainer.setup.from_checkpoint import typed_keys


def prepare_demo(config: DictConfig) -> None:
    """Write the demo data set if it is selected and does not exist, and check its pretrained backbones.

    Raises:
        UserError: a path of the demo is set to the user's own files, or a checkpoint names a folder without the demo.
    """
    if config.dataset.name != "demo":
        return
    root = Path(config.dataset.root)
    own = "dataset.root" in typed_keys() or str(root) == defaults()["dataset.root"]
    if config.mode != "train" and not own and not root.is_dir():
        raise UserError(
            f"the demo is not in {root}, where the checkpoint was trained on it: set dataset.root=FOLDER to the folder "
            "that holds it or shall hold it"
        )
    for split, key in itertools.product(("train_ds", "validation_ds", "test_ds"), ("visual_dir", "json_path")):
        path = config.dataset[split][key]
        if path is not None and not Path(path).resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"dataset.{split}.{key}={path} is not part of the demo: select the data set, such as "
                "preset=artemis_v1 or preset=coco, or dataset.name=artemis"
            )
    used = config.vle if config.stage in VLE_STAGES else None
    names = (
        (used.vision, used.tokenizer)
        if used
        else (
            config.model.vision.pretrained_name,
            config.model.text.pretrained_name,
        )
    )
    check_backbones(*names)
    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []  # remains empty if all pictures exist

        def advance(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress(total, f"painting the demo into {root}", unit="picture")))
            bars[0].update(done - bars[0].n)

        write_demo(root, num_train=config.dataset.demo_images, progress=advance)
    if config.stage in VLE_STAGES:
        write_rows(root)
    if config.stage == VLM and config.vlm.pretrained_name == str(root / "vlm"):
        from trainer.setup.demo_vlm import write_demo_vlm  # imported here: no other stage needs such a model

        write_demo_vlm(root / "vlm")
