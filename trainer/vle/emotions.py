"""mode=test of stage=vle_emotion: the files that the test of a captioner without explanations writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data.samples import Samples
from data.schema import Skipped
from trainer.prediction.rows import Prediction
from trainer.prediction.writer import annotations
from trainer.report.page import write_test_report
from trainer.runs.checkpoint import Checkpoint
from trainer.runtime.skipped import reasons
from trainer.score.configured import scoring_settings
from trainer.score.measure import measure, write_scores
from trainer.score.tables import metrics_text
from trainer.vle.tasks import EmotionTask, Result


def emotion_rows(
    results: Sequence[Result], samples: Samples, task: EmotionTask, *, temperature: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows of predictions.jsonl, with calibrated probabilities and the annotators' shares."""
    labels, log_probs = task.labels, task.table(results)[0]
    by_id = {sample.id: sample for sample in samples.without_texts()}
    for result, logits in zip(results, log_probs, strict=True):
        sample, probs = by_id[result["image"]], (logits / temperature).softmax(dim=-1).tolist()
        found = Prediction(
            sample.id, labels.index(result["emotion"]), probs, None, None, temperature=temperature, labels=labels
        )
        yield {**found.row(), "image": str(sample.path), **(annotations(sample, labels) if sample.texts else {})}


def write_emotion_test(
    folder: Path,
    config: DictConfig,
    checkpoint: Checkpoint,
    rows: Sequence[dict[str, Any]],
    *,
    facts: dict[str, str],
    origin: dict[str, Any],
    skipped: Sequence[Skipped],
) -> None:
    """Write metrics.json, per_image.jsonl and report.html, and print the metrics."""
    config = config.copy()
    config.dataset.explanations = False  # no baselines of texts
    settings, notes = scoring_settings(config)
    scores = measure(rows, settings, notes=notes)
    write_scores(folder, scores, origin)
    write_test_report(
        rows,
        scores.metrics,
        folder / "report.html",
        title=f"Test of {checkpoint.run.name}",
        facts=facts,
        per_image=scores.per_image,
        skipped=reasons(skipped),
        seed=config.seed,
    )
    print(metrics_text(scores.metrics))
