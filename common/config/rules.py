"""Rules for the values of `config.yaml`: types, choices, ranges, and the keys that each mode needs.

`config.yaml` lists the keys, and its defaults set their types; RULES adds the rest.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

MOST_LABELS = 100  # in a label set; an index is stored in one byte
NOUNS = {bool: "true or false", int: "a whole number", float: "a number"}
NOUNS |= {str: "a string", list: "a list", dict: "a mapping"}
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
ALIASES = {"cosineannealing": "cosine", "something_else": "something else"}


@dataclass(frozen=True)
class Rule:
    """Allowed values of a key: of type `kind` within `bounds`, or one of `words`, or null.

    If `kind` is str, `words` (if any) are the only values; with any other kind they are allowed in addition.
    """

    kind: type = str
    words: tuple[str, ...] = ()
    bounds: str = ""  # "> 0, <= 1"
    null: bool = False
    item: Rule | None = None  # rule of each item of a list
    length: int | None = None  # of a list; None: any but zero
    empty: bool = False  # whether a list may be empty

    def describe(self) -> str:
        """Return the rule in words, such as "a number > 0, <= 1 or null"."""
        if self.item is not None:
            count = self.length or ("any number of" if self.empty else "one or more")
            return f"a list of {count} values, each {self.item.describe()}"
        words, noun = " | ".join(self.words), f"{NOUNS[self.kind]} {self.bounds}".strip()
        ways = [f"one of {words}"] if self.words and self.kind is str else [way for way in (words, noun) if way]
        return " or ".join([*ways, "null"] if self.null else ways)

    def read(self, value: Any) -> Any:
        """Return `value` in the type and spelling of this rule.

        Raises:
            ValueError, TypeError, OverflowError: the value breaks the rule.
        """
        if self.null and value in (None, ""):
            return None
        if isinstance(value, str) and self.words:
            word = value.strip().lower()
            word = ALIASES.get(word, word)
            if word in self.words:
                return word
        _require(self.kind is not str or not self.words)
        new = READERS[self.kind](value, self)
        for bound in filter(None, self.bounds.split(", ")):
            sign, limit = bound.split()
            _require(OPERATORS[sign](new, float(limit)))
        return new


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _as_bool(value: Any, rule: Rule) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    _require(isinstance(value, bool))
    return value


def _as_float(value: Any, rule: Rule) -> float:
    _require(not isinstance(value, bool) and math.isfinite(float(value)))
    return float(value)


def _as_int(value: Any, rule: Rule) -> int:
    _require(_as_float(value, rule).is_integer() and abs(float(value)) < 1 << 53)
    return value if isinstance(value, int) else int(float(value))


def _as_str(value: Any, rule: Rule) -> str:
    _require(isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "")
    return str(value)


def _as_list(value: Any, rule: Rule) -> list[Any]:
    if isinstance(value, str):
        value = [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",")]
    _require(isinstance(value, list) and (len(value) > 0 or rule.empty) and len(value) == (rule.length or len(value)))
    return [rule.item.read(item) if rule.item else item for item in value]


def _as_dict(value: Any, rule: Rule) -> dict[str, Any]:
    _require(isinstance(value, dict))
    return value


READERS = {bool: _as_bool, int: _as_int, float: _as_float, str: _as_str, list: _as_list, dict: _as_dict}


def one_of(*words: str, null: bool = False) -> Rule:
    return Rule(words=words, null=null)


VLM, RATINGS = "vlm", "ratings"  # stages; RATINGS is also a kind of data set, as SHARDS
SHARDS = "shards"
VLE_STAGES = tuple(f"vle_{task}" for task in ("pretrain", "vqa", "itm", "pbc", "vcr", "emotion"))
GATES = ("average", "concat_linear", "mixture", "bilinear", "moe", "dynamic", "cross")
CAPTION_METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "aim", "comet_ml", "clearml", "dvclive", "swanlab")
GROUPS = ("folder", "artist", "period")  # of an image, by its path
LANGUAGES = ("zh", "uk", "ru", "bg", "is", "de", "it", "sv", "lt", "en")
DATASETS = ("dataset.train_ds", "dataset.validation_ds", "dataset.test_ds")
TEMPERATURE = Rule(float, bounds=">= 0.001, <= 1000")  # beyond, quotients of logits become infinite or equal
SHARED_RULES = {  # rules of several keys
    Rule(null=True): (
        *("pretrained_name", "image", "emotion", "question", "text"),  # emotion: the checkpoint defines the labels
        *("model.vision.pretrained_name", "model.vision.architecture", "model.text.pretrained_name"),
        *("expert.teacher.weights", "expert.student.teacher", "dataset.vad_lexicon", "dataset.feature_cache"),
        *("dataset.facts", "language"),
        *(f"{part}.{key}" for part in DATASETS for key in ("visual_dir", "json_path")),
        *("trainer.test.clip_score.pretrained_name", "trainer.test.clip_score.architecture"),
        *(f"vle.{key}" for key in ("pretrained_name", "vision", "text", "tokenizer", "answers", "partner")),
        *(f"vle.llm.{key}" for key in ("model", "endpoint", "captioner", "caption")),
        *("trainer.test.text_emotion", "trainer.test.vle", "serve.vle"),
        *("vlm.pretrained_name", "vlm.instructions"),
    ),
    Rule(dict, null=True): (
        *("model.vision.config", "model.vision.preprocess", "model.text.config"),
        *("expert.teacher.config", "vle.config"),
    ),
    Rule(bool, words=("auto",)): (
        *("model.text.segments", "model.vad.enabled", "model.contrastive.enabled"),
        *("dataset.emotions", "dataset.explanations"),
    ),
    Rule(int, bounds=">= 0"): (
        *(f"{part}.num_workers" for part in DATASETS),
        *("trainer.num_validation_images", "trainer.num_validation_captions", "trainer.test.match_images"),
        "vle.retrieval_images",
        "trainer.checkpoint_callback_params.save_top_k",
    ),
    Rule(int, bounds=">= 1", null=True): (
        *("model.contrastive.hidden_dim", "trainer.check_val_every_n_epoch", "trainer.check_val_every_n_steps"),
        *("trainer.checkpoint_every_n_steps", "trainer.early_stopping_patience", "trainer.limit_train_batches"),
        *("trainer.limit_val_batches", "trainer.test.top_k", "trainer.test.limit_batches"),
    ),
    Rule(int, bounds=">= 1, <= 1000"): ("trainer.test.beam_width", "trainer.test.best_of"),
    Rule(float, bounds="> 0"): (
        *(
            "vle.head_lr",
            "vle.fusion_lr",
            "model.optimizer.lr",
            "model.optimizer.eps",
            "expert.teacher.lr",
        ),
        *("expert.student.lr", "serve.max_megabytes", "serve.timeout", "model.text.lora.alpha", "vlm.lora.alpha"),
    ),
    TEMPERATURE: ("model.contrastive.temperature", "expert.student.temperature", "trainer.test.temperature"),
    Rule(float, bounds="> 0", null=True): (
        *("model.balance", "model.optimizer.vad_lr", "trainer.clip_grad_norm", "trainer.checkpoint_every_n_minutes"),
    ),
    Rule(float, bounds="> 0, <= 1"): ("expert.teacher.smallest_crop", "trainer.test.top_p"),
    Rule(float, bounds=">= 0, <= 1"): ("model.optimizer.scheduler.warmup_ratio", "expert.student.alpha"),
    Rule(float, bounds=">= 0, < 1"): (
        *("expert.student.dropout", "dataset.gate_split", "model.text.lora.dropout", "vlm.lora.dropout"),
    ),
    Rule(list, item=Rule(), null=True): (
        *("model.text.lora.targets", "vlm.lora.targets", "vlm.lora.whole", "dataset.labels"),
    ),
    one_of("gelu", "relu", "sqrelu"): ("model.resampler.activation", "model.text.xattn.activation"),
}

RULES: dict[str, Rule] = {
    **{key: rule for rule, keys in SHARED_RULES.items() for key in keys},
    "mode": one_of("train", "test", "predict", "serve"),
    "stage": one_of("caption", "teacher", "student", "gate", RATINGS, VLM, *VLE_STAGES),
    "seed": Rule(int, bounds=f">= 0, <= {2**32 - 1}"),
    "top_emotions": Rule(int, bounds=f">= 1, <= {MOST_LABELS}"),
    "model.architecture": one_of("emoscribe", "sevlm"),
    "model.emotion_target": one_of("label", "histogram"),
    "model.vision.tokens": one_of("all", "patches"),
    "model.vision.transform": one_of("clip", "clip_transformers", "imagenet_squash"),
    "model.mapper.mapper_type": one_of("mlp", "transformer"),
    "model.vad.fusion": one_of("gated", "concat", "off"),
    "model.vad.encoder": one_of("none", "causal", "bidirectional"),
    "model.contrastive.negatives": one_of("auto", "read", "states"),
    "model.text.lora.r": Rule(int, bounds=">= 1", null=True),
    "model.optimizer.name": one_of("adamw", "adam"),
    "model.optimizer.betas": Rule(list, item=Rule(float, bounds=">= 0, < 1"), length=2),
    "model.optimizer.scheduler.name": one_of("linear", "cosine", "constant"),
    "model.optimizer.scheduler.warmup_steps": Rule(int, bounds=">= 0", null=True),
    "expert.teacher.image_size": Rule(int, bounds=">= 16", null=True),
    "expert.student.features": one_of("clip", "resampler"),
    "expert.student.pool": one_of("attention", "mean", "class"),
    "expert.student.depth": Rule(int, bounds=">= 0, <= 3"),
    "vle.image_size": Rule(int, bounds=">= 16", null=True),
    "vle.text_length": Rule(int, bounds=">= 4"),
    "vle.masked": Rule(float, bounds="> 0, < 1"),
    "vle.reasons": Rule(float, bounds=">= 0, <= 1"),
    "vlm.max_side": Rule(int, bounds=">= 16"),
    "vle.vcr": one_of("q2a", "qa2r"),
    "vle.freeze": one_of("none", "vision", "towers"),
    "vle.llm.style": one_of("long", "short", null=True),
    "serve.port": Rule(int, bounds=">= 0, <= 65535"),
    "expert.sources": Rule(list, item=Rule(), empty=True),
    "dataset.languages": Rule(list, item=Rule(), null=True, empty=True),
    "expert.gate.name": one_of("auto", *GATES),
    "expert.gate.weight_decay": Rule(float, bounds=">= 0"),
    "dataset.name": one_of("demo", "artemis", "coco", "mlslt", "table", "emotion_folder", RATINGS, SHARDS),
    "dataset.sign_languages": Rule(list, item=one_of(*LANGUAGES)),
    "dataset.vad_scale": one_of("auto", "-1..1", "0..1", "1..5", "1..9", "0..100"),
    "dataset.vad_columns": Rule(list, item=Rule(), length=4, null=True),
    "dataset.rating_scale": Rule(list, item=Rule(float), length=2, null=True),
    "dataset.vad_unit": one_of("word", "piece"),
    "dataset.validation_share": Rule(float, bounds="> 0, < 1"),
    "dataset.texts_per_image": Rule(int, words=("auto",), bounds=">= 1"),
    "dataset.max_length": Rule(int, bounds=">= 8"),
    "trainer.trackers": Rule(list, item=one_of(*TRACKERS), empty=True),
    "trainer.device": one_of("auto", "cpu", "cuda", "mps"),
    "trainer.precision": one_of("auto", "fp32", "fp16", "bf16"),
    "trainer.resume": one_of("auto", null=True),
    "trainer.timeout_minutes": Rule(float, bounds="> 0, <= 1000000"),
    "trainer.checkpoint_callback_params.monitor": one_of("val_loss", "train_loss", "val_emotion_accuracy"),
    "trainer.test.decoding_strategy": one_of("greedy", "nucleus", "beam"),
    "trainer.test.guidance": Rule(float, bounds=">= 0, <= 100"),
    "trainer.test.rank_by": one_of("contrastive", "picture", "pragmatic", "vle"),
    "trainer.test.emotion_scoring": one_of("sequence", "first_token"),
    "trainer.test.emotion_temperature": replace(TEMPERATURE, words=("auto",)),
    "trainer.test.emotion_from": one_of("scores", "text"),
    "save_as": one_of("jsonl", "parquet"),
    "group_by": one_of(*GROUPS, null=True),
    "trainer.test.group_by": Rule(null=True),
    "trainer.test.label_map": Rule(list, item=Rule(), null=True, empty=True),
    "trainer.test.metrics": Rule(list, item=one_of(*CAPTION_METRICS)),
}


def default_rule(value: Any) -> Rule:
    """Return the rule of a key that is not in RULES: the type of its default, not null."""
    return Rule(type(value), bounds={int: ">= 1", float: ">= 0"}.get(type(value), ""))


RUN = "RUN: the run folder, checkpoint folder or run name to"
IMAGES, ANNOTATIONS = "FOLDER: the images (or videos)", "FILE: the annotations of the images"
NEEDS: dict[str, dict[str, str]] = {
    "train": {
        "dataset.train_ds.visual_dir": IMAGES,
        "dataset.train_ds.json_path": ANNOTATIONS,
        "dataset.validation_ds.visual_dir": IMAGES,
        "dataset.validation_ds.json_path": ANNOTATIONS,
    },
    "test": {"pretrained_name": f"{RUN} test"},  # its configuration names the test set
    "predict": {"pretrained_name": f"{RUN} use", "image": "PATH: an image, or a folder of images"},
    "serve": {"pretrained_name": f"{RUN} use"},
}
# Keys of NEEDS that are optional for a kind of data set.
NOT_NEEDED = {
    "emotion_folder": (
        "dataset.train_ds.json_path",
        "dataset.validation_ds.visual_dir",  # by default, a share of the training images
        "dataset.validation_ds.json_path",
        "dataset.test_ds.json_path",
    ),
    RATINGS: tuple(  # those of train_ds
        f"{part}.{key}" for part in DATASETS[1:] for key in ("visual_dir", "json_path")
    ),
    SHARDS: tuple(f"{part}.visual_dir" for part in DATASETS),
}
# A file may leave these as ???, except in the modes listed.
NEEDED_BY = {
    "pretrained_name": ("test", "predict", "serve"),
    "image": ("predict",),
    "emotion": ("predict",),
    "language": ("predict",),
    "top_emotions": ("predict",),
    "dataset.train_ds": ("train",),
    "dataset.validation_ds": ("train",),
    "dataset.test_ds": ("test",),
}
