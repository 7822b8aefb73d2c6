"""What every key of `config.yaml` may hold: types, choices, ranges, and what each mode needs.

`config.yaml` is the list of the keys and, by its defaults, of their types; the table here adds the rest.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

MOST_LABELS = 100  # of a set; they are kept as single bytes


NOUNS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
}
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
ALIASES = {"cosineannealing": "cosine", "something_else": "something else"}


@dataclass(frozen=True)
class Rule:
    """What a key may hold: a value of `kind` within `bounds`, or one of `words`, or null.

    `words` are the only values of a key of kind str, and stand beside the values of any other kind.
    """

    kind: type = str
    words: tuple[str, ...] = ()
    bounds: str = ""  # "> 0, <= 1"
    null: bool = False
    item: Rule | None = None  # of a list
    length: int | None = None  # of a list; None: any but zero

    def wanted(self) -> str:
        """The rule in words, such as "a number > 0, <= 1 or null"."""
        if self.item is not None:
            return f"a list of {self.length or 'one or more'} values, each {self.item.wanted()}"
        words, noun = " | ".join(self.words), f"{NOUNS[self.kind]} {self.bounds}".strip()
        ways = [f"one of {words}"] if self.words and self.kind is str else [way for way in (words, noun) if way]
        return " or ".join([*ways, "null"] if self.null else ways)

    def read(self, value: Any) -> Any:
        """`value` in this rule's type and spelling.

        Raises:
            ValueError, TypeError, OverflowError: the rule does not allow it.
        """
        if self.null and value in (None, ""):
            return None
        if isinstance(value, str) and self.words:
            word = value.strip().lower()
            word = ALIASES.get(word, word)
            if word in self.words:
                return word
        if self.kind is str and self.words:
            raise ValueError
        new = READERS[self.kind](value, self)
        for bound in filter(None, self.bounds.split(", ")):
            sign, limit = bound.split()
            if not OPERATORS[sign](new, float(limit)):
                raise ValueError
        return new


def _as_bool(value: Any, rule: Rule) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def _as_float(value: Any, rule: Rule) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _as_int(value: Any, rule: Rule) -> int:
    if not _as_float(value, rule).is_integer() or abs(float(value)) >= 1 << 53:
        raise ValueError
    return value if isinstance(value, int) else int(float(value))


def _as_str(value: Any, rule: Rule) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        raise ValueError
    return str(value)


def _as_list(value: Any, rule: Rule) -> list[Any]:
    items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or len(items) != (rule.length or len(items)):
        raise ValueError
    return [rule.item.read(item) if rule.item else item for item in items]


def _as_dict(value: Any, rule: Rule) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


READERS = {bool: _as_bool, int: _as_int, float: _as_float, str: _as_str, list: _as_list, dict: _as_dict}


def one_of(*words: str, null: bool = False) -> Rule:
    return Rule(words=words, null=null)


TEXT_OR_NULL = Rule(null=True)
COUNT_OR_NULL = Rule(int, bounds=">= 1", null=True)
NOT_NEGATIVE = Rule(int, bounds=">= 0")
SHARE = Rule(float, bounds="> 0, <= 1")
SWITCH_OR_AUTO = Rule(bool, words=("auto",))
ACTIVATION = one_of("gelu", "relu", "sqrelu")
GATES = ("average", "concat_linear", "mixture", "bilinear", "moe", "dynamic", "cross")
CAPTION_METRICS = ("bleu", "meteor", "rouge_l", "cider", "spice")
LANGUAGES = ("zh", "uk", "ru", "bg", "is", "de", "it", "sv", "lt", "en")
DATASETS = ("dataset.train_ds", "dataset.validation_ds", "dataset.test_ds")

RULES: dict[str, Rule] = {
    "mode": one_of("train", "test", "predict"),
    "stage": one_of("caption", "teacher", "student", "gate"),
    "seed": Rule(int, bounds=f">= 0, <= {2**32 - 1}"),
    "pretrained_name": TEXT_OR_NULL,
    "image": TEXT_OR_NULL,
    "emotion": TEXT_OR_NULL,  # which there are, the checkpoint says
    "top_emotions": Rule(int, bounds=f">= 1, <= {MOST_LABELS}"),
    "model.architecture": one_of("emoscribe", "sevlm"),
    "model.emotion_target": one_of("label", "histogram"),
    "model.vision.pretrained_name": TEXT_OR_NULL,
    "model.vision.architecture": TEXT_OR_NULL,
    "model.vision.config": Rule(dict, null=True),
    "model.vision.tokens": one_of("all", "patches"),
    "model.vision.transform": one_of("clip", "imagenet_squash"),
    "model.mapper.mapper_type": one_of("mlp", "transformer"),
    "model.resampler.activation": ACTIVATION,
    "model.text.pretrained_name": TEXT_OR_NULL,
    "model.text.config": Rule(dict, null=True),
    "model.text.segments": SWITCH_OR_AUTO,
    "model.text.xattn.activation": ACTIVATION,
    "model.vad.enabled": SWITCH_OR_AUTO,
    "model.vad.fusion": one_of("gated", "concat", "off"),
    "model.vad.encoder": one_of("none", "causal", "bidirectional"),
    "model.contrastive.enabled": SWITCH_OR_AUTO,
    "model.contrastive.temperature": Rule(float, bounds="> 0"),
    "model.contrastive.negatives": one_of("auto", "read", "states"),
    "model.contrastive.hidden_dim": COUNT_OR_NULL,
    "model.optimizer.name": one_of("adamw", "adam"),
    "model.optimizer.lr": Rule(float, bounds="> 0"),
    "model.optimizer.betas": Rule(list, item=Rule(float, bounds=">= 0, < 1"), length=2),
    "model.optimizer.eps": Rule(float, bounds="> 0"),
    "model.optimizer.vad_lr": Rule(float, bounds="> 0", null=True),
    "model.optimizer.scheduler.name": one_of("linear", "cosine", "constant"),
    "model.optimizer.scheduler.warmup_steps": Rule(int, bounds=">= 0", null=True),
    "model.optimizer.scheduler.warmup_ratio": Rule(float, bounds=">= 0, <= 1"),
    "expert.teacher.config": Rule(dict, null=True),
    "expert.teacher.image_size": Rule(int, bounds=">= 16", null=True),
    "expert.teacher.smallest_crop": SHARE,
    "expert.student.features": one_of("clip", "resampler"),
    "expert.student.pool": one_of("attention", "mean", "class"),
    "expert.student.depth": Rule(int, bounds=">= 0, <= 3"),
    "expert.student.dropout": Rule(float, bounds=">= 0, < 1"),
    "expert.student.alpha": Rule(float, bounds=">= 0, <= 1"),
    "expert.student.temperature": Rule(float, bounds="> 0"),
    **{f"expert.{part}.lr": Rule(float, bounds="> 0") for part in ("teacher", "student")},
    **{f"expert.{key}": TEXT_OR_NULL for key in ("teacher.weights", "student.teacher")},
    "expert.gate.name": one_of("auto", *GATES),
    "expert.gate.weight_decay": Rule(float, bounds=">= 0"),
    "dataset.gate_split": Rule(float, bounds=">= 0, < 1"),
    "dataset.name": one_of("demo", "artemis", "coco", "mlslt", "table", "emotion_folder"),
    "dataset.sign_languages": Rule(list, item=one_of(*LANGUAGES)),
    "dataset.vad_lexicon": TEXT_OR_NULL,
    "dataset.vad_scale": one_of("auto", "-1..1", "0..1", "1..5", "1..9"),
    "dataset.vad_columns": Rule(list, item=Rule(), length=4, null=True),
    "dataset.vad_unit": one_of("word", "piece"),
    "dataset.feature_cache": TEXT_OR_NULL,
    "dataset.emotions": SWITCH_OR_AUTO,
    "dataset.labels": Rule(list, item=Rule(), null=True),
    "dataset.explanations": SWITCH_OR_AUTO,
    "dataset.validation_share": Rule(float, bounds="> 0, < 1"),
    "dataset.texts_per_image": Rule(int, words=("auto",), bounds=">= 1"),
    "dataset.max_length": Rule(int, bounds=">= 8"),
    **{f"{part}.{key}": TEXT_OR_NULL for part in DATASETS for key in ("visual_dir", "json_path")},
    **{f"{part}.num_workers": NOT_NEGATIVE for part in DATASETS},
    "trainer.device": one_of("auto", "cpu", "cuda", "mps"),
    "trainer.precision": one_of("auto", "fp32", "fp16", "bf16"),
    "trainer.clip_grad_norm": Rule(float, bounds="> 0", null=True),
    "trainer.check_val_every_n_epoch": COUNT_OR_NULL,
    "trainer.check_val_every_n_steps": COUNT_OR_NULL,
    "trainer.resume": one_of("auto", null=True),
    "trainer.checkpoint_every_n_steps": COUNT_OR_NULL,
    "trainer.checkpoint_every_n_minutes": Rule(float, bounds="> 0", null=True),
    "trainer.early_stopping_patience": COUNT_OR_NULL,
    "trainer.timeout_minutes": Rule(float, bounds="> 0, <= 1000000"),
    "trainer.limit_train_batches": COUNT_OR_NULL,
    "trainer.limit_val_batches": COUNT_OR_NULL,
    "trainer.num_validation_images": NOT_NEGATIVE,
    "trainer.num_validation_captions": NOT_NEGATIVE,
    "trainer.checkpoint_callback_params.monitor": one_of("val_loss", "train_loss", "val_emotion_accuracy"),
    "trainer.checkpoint_callback_params.save_top_k": NOT_NEGATIVE,
    "trainer.test.decoding_strategy": one_of("greedy", "nucleus", "beam"),
    "trainer.test.temperature": Rule(float, bounds="> 0"),
    "trainer.test.top_p": Rule(float, bounds="> 0, <= 1"),
    "trainer.test.top_k": COUNT_OR_NULL,
    **{f"trainer.test.{key}": Rule(int, bounds=">= 1, <= 1000") for key in ("beam_width", "best_of")},
    "trainer.test.emotion_scoring": one_of("sequence", "first_token"),
    "trainer.test.emotion_temperature": Rule(float, words=("auto",), bounds="> 0"),
    "trainer.test.emotion_from": one_of("scores", "text"),
    "trainer.test.limit_batches": COUNT_OR_NULL,
    "trainer.test.metrics": Rule(list, item=one_of(*CAPTION_METRICS)),
    "trainer.test.text_emotion": TEXT_OR_NULL,
    "trainer.test.clip_score.pretrained_name": TEXT_OR_NULL,
    "trainer.test.clip_score.architecture": TEXT_OR_NULL,
}
DEFAULT_BOUNDS = {int: ">= 1", float: ">= 0"}


def by_default(value: Any) -> Rule:
    """The rule of a key that the table does not name: the type of its default, without null."""
    return Rule(type(value), bounds=DEFAULT_BOUNDS.get(type(value), ""))


RUN = "RUN: the run folder, checkpoint folder or run name to"
IMAGES, ANNOTATIONS = "FOLDER: the images (or videos)", "FILE: the annotations of the images"
NEEDS: dict[str, dict[str, str]] = {
    "train": {
        "dataset.train_ds.visual_dir": IMAGES,
        "dataset.train_ds.json_path": ANNOTATIONS,
        "dataset.validation_ds.visual_dir": IMAGES,
        "dataset.validation_ds.json_path": ANNOTATIONS,
    },
    "test": {
        "pretrained_name": f"{RUN} test",  # the run's own configuration may name its test set
    },
    "predict": {"pretrained_name": f"{RUN} use", "image": "PATH: a picture, or a folder of pictures"},
}
# Of these, what a kind of data does without.
NOT_NEEDED = {
    "emotion_folder": (
        "dataset.train_ds.json_path",
        "dataset.validation_ds.visual_dir",  # a share of the pictures to train on is kept for it
        "dataset.validation_ds.json_path",
        "dataset.test_ds.json_path",
    ),
}
# A file may leave ??? in these: it counts only in the modes that cannot do without them.
NEEDED_BY = {
    "pretrained_name": ("test", "predict"),
    "image": ("predict",),
    "emotion": ("predict",),
    "top_emotions": ("predict",),
    "dataset.train_ds": ("train",),
    "dataset.validation_ds": ("train",),
    "dataset.test_ds": ("test",),
}
