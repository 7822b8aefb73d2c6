"""Settle every `auto` of the configuration that depends on the data."""

from __future__ import annotations

from omegaconf import DictConfig

from common.errors import UserError
from data.readers.split import source_of

NOT_FREE = (
    "trainer.test.emotion_from=text needs a network that was trained to write its emotion freely "
    "(model.architecture=sevlm); set trainer.test.emotion_from=scores"
)


def resolve_auto(config: DictConfig, *, has_emotions: bool, has_texts: bool = True) -> None:
    """Settle, in place, every `auto` that depends on what the data has: emotions, texts beyond their names.

    Raises:
        UserError: a part that is switched on and has nothing to work on.
    """
    model, dataset = config.model, config.dataset
    _require_free_text(config)
    has_lexicon = dataset.vad_lexicon is not None
    dataset.emotions = _settle(dataset.emotions, has_emotions)
    if dataset.emotions and not has_emotions:
        raise UserError(f"dataset.emotions=true, but {dataset.train_ds.json_path} has no emotions")
    dataset.explanations = _settle(dataset.explanations, has_texts)
    if not dataset.explanations:
        _refuse_without_explanations(config)
    model.vad.enabled = _settle(model.vad.enabled, has_lexicon and dataset.explanations)
    if model.vad.enabled and not has_lexicon:
        raise UserError("model.vad.enabled=true needs dataset.vad_lexicon=FILE (word, valence, arousal, dominance)")
    model.contrastive.enabled = _settle(model.contrastive.enabled, dataset.emotions and dataset.explanations)
    if not dataset.emotions:
        _refuse_without_emotions(config)
    model.text.segments = _settle(model.text.segments, model.vad.enabled or model.contrastive.enabled)
    _settle_negatives(model)
    if dataset.texts_per_image == "auto":
        dataset.texts_per_image = 2 if dataset.emotions else 1


def _refuse_without_explanations(config: DictConfig) -> None:
    if not config.dataset.emotions:
        raise UserError(
            f"{source_of(config.dataset, 'train_ds')}: without emotions and without explanations there is nothing to "
            "learn; leave dataset.emotions and dataset.explanations at auto"
        )
    if config.model.architecture == "sevlm":
        raise UserError("model.architecture=sevlm needs explanations; the data has none, or dataset.explanations=false")


def _refuse_without_emotions(config: DictConfig) -> None:
    model, monitor = config.model, config.trainer.checkpoint_callback_params.monitor
    asked_for = {
        "model.contrastive.enabled=true": model.contrastive.enabled,
        "model.emotion_target=histogram": model.emotion_target == "histogram",
        "model.architecture=sevlm": model.architecture == "sevlm",
        "trainer.checkpoint_callback_params.monitor=val_emotion_accuracy": monitor == "val_emotion_accuracy",
    }
    for key, asked in asked_for.items():
        if asked:
            raise UserError(f"{key} needs emotions; the data has none, or dataset.emotions=false")


def _settle_negatives(model: DictConfig) -> None:
    sevlm, contrastive = model.architecture == "sevlm", model.contrastive
    if contrastive.negatives == "auto":
        contrastive.negatives = "states" if sevlm else "read"
    if sevlm and contrastive.negatives == "read":
        raise UserError("model.architecture=sevlm compares states as they are: set model.contrastive.negatives=states")


def _require_free_text(config: DictConfig) -> None:
    if config.trainer.test.emotion_from == "text" and config.model.architecture != "sevlm":
        raise UserError(NOT_FREE)


def _settle(value: bool | str, automatic: bool) -> bool:
    return automatic if value == "auto" else bool(value)
