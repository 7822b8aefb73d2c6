"""Replace each `auto` of the configuration that depends on the data."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from common.config.rules import RATINGS
from common.errors import UserError
from data.languages import language_name
from data.readers.split import source_of

NEEDS_TEXT_EMOTION = (
    "trainer.test.emotion_from=text needs a network that was trained to generate its emotion as text "
    "(model.architecture=sevlm); set trainer.test.emotion_from=scores"
)


def resolve_auto(
    config: DictConfig, *, has_emotions: bool, has_texts: bool = True, languages: Sequence[str] = ()
) -> None:
    """Set, in place, every `auto` that depends on whether the data has emotions and explanations.

    Args:
        languages: of the training texts.

    Raises:
        UserError: a part is switched on, but the data lacks what it needs.
    """
    model, dataset = config.model, config.dataset
    if config.trainer.test.emotion_from == "text" and model.architecture != "sevlm":
        raise UserError(NEEDS_TEXT_EMOTION)
    has_lexicon = dataset.vad_lexicon is not None
    dataset.emotions = _resolve(dataset.emotions, has_emotions)
    if dataset.emotions and not has_emotions:
        raise UserError(f"dataset.emotions=true, but {dataset.train_ds.json_path} has no emotions")
    dataset.explanations = _resolve(dataset.explanations, has_texts)
    if not dataset.explanations:
        _refuse_without_explanations(config)
    model.vad.enabled = _resolve(model.vad.enabled, has_lexicon and dataset.explanations)
    if model.vad.enabled and not has_lexicon:
        raise UserError("model.vad.enabled=true needs dataset.vad_lexicon=FILE (word, valence, arousal, dominance)")
    model.contrastive.enabled = _resolve(model.contrastive.enabled, dataset.emotions and dataset.explanations)
    if not dataset.emotions:
        _refuse_without_emotions(config)
    model.text.segments = _resolve(model.text.segments, model.vad.enabled or model.contrastive.enabled)
    sevlm, contrastive = model.architecture == "sevlm", model.contrastive
    if contrastive.negatives == "auto":
        contrastive.negatives = "states" if sevlm else "read"
    if sevlm and contrastive.negatives == "read":
        raise UserError("model.architecture=sevlm compares hidden states: set model.contrastive.negatives=states")
    dataset.languages = _written(config, languages)
    if dataset.texts_per_image == "auto":
        dataset.texts_per_image = 2 if dataset.emotions else 1


def _written(config: DictConfig, found: Sequence[str]) -> list[str]:
    """Return the languages among which the network is given the one to write: none, or several."""
    listed, sevlm = config.dataset.languages, config.model.architecture == "sevlm"
    if listed and sevlm:
        raise UserError("model.architecture=sevlm writes one language: set dataset.languages=[]")
    if listed is not None:
        return [language_name(name) for name in listed]
    return [*found] if len(found) > 1 and config.dataset.explanations and not sevlm else []


def _resolve(value: bool | str, automatic: bool) -> bool:
    return automatic if value == "auto" else bool(value)


def _refuse_without_explanations(config: DictConfig) -> None:
    if not config.dataset.emotions:
        rated = config.dataset.name == RATINGS
        way = "learn ratings with stage=ratings" if rated else "leave dataset.emotions and dataset.explanations at auto"
        raise UserError(
            f"{source_of(config.dataset, 'train_ds')}: without emotions and without explanations there is nothing to "
            f"learn for a captioner; {way}"
        )
    if config.model.architecture == "sevlm":
        raise UserError("model.architecture=sevlm needs explanations; the data has none, or dataset.explanations=false")


def _refuse_without_emotions(config: DictConfig) -> None:
    model, monitor = config.model, config.trainer.checkpoint_callback_params.monitor
    selected = {
        "model.contrastive.enabled=true": model.contrastive.enabled,
        "model.emotion_target=histogram": model.emotion_target == "histogram",
        "model.architecture=sevlm": model.architecture == "sevlm",
        "trainer.checkpoint_callback_params.monitor=val_emotion_accuracy": monitor == "val_emotion_accuracy",
    }
    if key := next((key for key, value in selected.items() if value), None):
        raise UserError(f"{key} needs emotions; the data has none, or dataset.emotions=false")
