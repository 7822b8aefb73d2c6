"""Files and folders of a configuration, as absolute paths: a run can then be used from any working directory."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from common.config.rules import SHARDS
from common.reading import BACKBONES, expand_user

SPLITS = ("train_ds", "validation_ds", "test_ds")
LOCATIONS = (  # none of which trainer.resume=auto compares; it compares what the files hold
    *(f"dataset.{key}" for key in ("root", "vad_lexicon", "facts", "tokenizer")),
    *(f"dataset.{split}.{key}" for split in SPLITS for key in ("json_path", "visual_dir")),
    *("model.vision.pretrained_name", "model.text.pretrained_name", "expert.teacher.weights"),
    *("trainer.test.text_emotion", "trainer.test.vle", "trainer.test.clip_score.pretrained_name"),
    *(f"vle.{key}" for key in ("vision", "text", "tokenizer", "answers")),
    *("vlm.pretrained_name", "vlm.instructions"),
)


def make_absolute(config: DictConfig) -> None:
    """Replace the relative paths of LOCATIONS that exist, in place; other values may be names on the hub.

    An interpolation, as in "${dataset.root}/images", stays, and follows dataset.root.
    """
    for key in LOCATIONS:
        parent, _, name = key.rpartition(".")
        value = OmegaConf.select(config, key)
        if value is None or OmegaConf.is_interpolation(OmegaConf.select(config, parent), name):
            continue
        path = expand_user(str(value))
        a_pattern = name == "json_path" and OmegaConf.select(config, "dataset.name") == SHARDS
        if not Path(value).is_relative_to(BACKBONES) and (path.exists() or key == "dataset.root" or a_pattern):
            OmegaConf.update(config, key, str(path.absolute()))
