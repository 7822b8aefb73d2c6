"""Predictions and references brought together, image by image."""

from __future__ import annotations

from common.errors import UserError
from data.emotions import labels_of
from trainer.score.predictions import Row, Texts, judged


def join(predictions: Texts, references: Texts | None, *, subset: bool = False) -> tuple[list[Row], list[str]]:
    """Return rows as in predictions.jsonl, in the order of the predictions, and notes on what was left out.

    Args:
        references: None: the predictions hold their own.
        subset: only the images that both have, instead of refusing files that differ.

    Raises:
        UserError: the two do not have the same images (unless `subset`), or none in common.
    """
    if references is None:
        references = _own(predictions, subset=subset)
    notes = [*predictions.notes, *references.notes]
    ids = common(predictions, references, subset=subset)
    _refuse_other_labels(predictions, references, ids[0])
    if len(ids) < len(predictions.rows) or len(ids) < len(references.rows):
        notes.append(
            f"scored are the {len(ids)} images that have a prediction and references, of {len(predictions.rows)} "
            f"predicted and {len(references.rows)} with references"
        )
    return [{**predictions.rows[id], **references.rows[id]} for id in ids], notes


def _refuse_other_labels(predictions: Texts, references: Texts, id: str) -> None:
    said, felt = predictions.rows[id], references.rows[id]
    if said.get("emotion_distribution") and felt.get("histogram") and labels_of(said) != labels_of(felt):
        raise UserError(
            f"{predictions.path} is of the emotions {', '.join(labels_of(said))} and {references.path} of "
            f"{', '.join(labels_of(felt))}"
        )


def _own(predictions: Texts, *, subset: bool) -> Texts:
    """Return the references in the predictions' own rows."""
    having = judged(predictions.rows)
    if not having:
        raise UserError(f"{predictions.path} holds no references; --references FILE names them")
    without = [id for id in predictions.rows if id not in having]
    if without and not subset:
        raise UserError(
            f"{predictions.path}: image {without[0]!r} has no references ({len(without)} such images); --subset leaves "
            "them out, --references FILE names others"
        )
    return Texts(predictions.path, "its own", having)


def common(a: Texts, b: Texts, *, subset: bool) -> list[str]:
    """Return the ids of the images that both have, in the order of `a`.

    Raises:
        UserError: they have none in common, or one has images that the other has not (unless `subset`).
    """
    ids = [id for id in a.rows if id in b.rows]
    if not ids:
        first, second = next(iter(a.rows)), next(iter(b.rows))
        raise UserError(
            f"{a.path} (images such as {first!r}) and {b.path} (such as {second!r}) have no image in common"
        )
    parts = []
    for one, other in ((a, b), (b, a)):
        if only := [id for id in one.rows if id not in other.rows]:
            images = "image is" if len(only) == 1 else "images are"
            parts.append(f"{len(only)} {images} only in {one.path}, the first is {only[0]!r}")
    if parts and not subset:
        raise UserError(f"{' and '.join(parts)}; --subset scores the {len(ids)} that both have")
    return ids
