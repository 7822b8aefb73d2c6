"""The scores of a test as rows, for the terminal and for the report."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.emotions import labels_of, number_of
from trainer.expert.sections import expert_sections
from trainer.metrics.captions import NAMES
from trainer.metrics.emotions import RULE_WORDS
from trainer.metrics.written import Figure, Section, count, figures_of, length, number, percent

CAPTION_ORDER = (*NAMES, "CLIPScore", "RefCLIPScore")
WIDTHS = (80, 120)  # of the narrowest and the widest table, in columns
CAPTIONS, FILTERED = "captions", "captions, filtered"


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Aligned plain text of all scores with their intervals, rules and notes, without a final newline."""
    shown = side_by_side(sections(metrics))
    width = min(max(shutil.get_terminal_size((100, 24)).columns, WIDTHS[0]), WIDTHS[1])
    figures = [figure for section in shown for figure in section.figures]
    columns = [max((len(text) for text in texts), default=0) for texts in zip(*map(_texts, figures), strict=True)]
    lines: list[str] = []
    for section in shown:
        title = f"{section.title}: {section.about}" if section.about else section.title
        lines += ["", *textwrap.wrap(title, width)]
        lines += [line for figure in section.figures for line in _lines(figure, columns, width)]
    lines += ["", *textwrap.wrap(interval_words(metrics), width)]
    for note in dict.fromkeys(metrics.get("notes") or ()):
        lines += textwrap.wrap(f"note: {note}", width, subsequent_indent="  ", break_long_words=False)
    return "\n".join(lines).strip("\n") or "no scores"


def side_by_side(shown: Sequence[Section]) -> list[Section]:
    """With the filtered caption scores to the right of the unfiltered ones."""
    found = {section.title: section for section in shown}
    if not {CAPTIONS, FILTERED} <= found.keys():
        return list(shown)
    right = {figure.name: f"{figure.value}  {figure.interval}".rstrip() for figure in found[FILTERED].figures}
    figures = [figure._replace(about=right.get(figure.name, "")) for figure in found[CAPTIONS].figures]
    about = f"{found[CAPTIONS].about}; on the right {found[FILTERED].about}"
    both = Section(CAPTIONS, about, figures)
    return [both if section.title == CAPTIONS else section for section in shown if section.title != FILTERED]


def _texts(figure: Figure) -> tuple[str, str, str]:
    return figure.name, figure.value, figure.interval


def _lines(figure: Figure, columns: Sequence[int], width: int) -> list[str]:
    name, value, interval = columns
    head = f"  {figure.name:<{name}}  {figure.value:>{value}}  {figure.interval:<{interval}}  "
    if not figure.about:
        return [head.rstrip()]
    return textwrap.wrap(figure.about, width, initial_indent=head, subsequent_indent=" " * len(head))


def interval_words(metrics: Mapping[str, Any]) -> str:
    """What the intervals are; empty where there are none."""
    if not metrics.get("intervals") or not metrics.get("bootstrap"):
        return ""
    return f"in brackets: 95 % intervals of {metrics['bootstrap']['replicates']} bootstrap samples of the images"


def sections(metrics: Mapping[str, Any]) -> list[Section]:
    """All sections that have a figure, in the order in which they are read."""
    made = (_emotion, _captions, _filtered, _explanations, _alignment, _vad)
    found = [*(make(metrics) for make in made), *expert_sections(metrics)]
    return [section for section in found if section is not None and section.figures]


# --- sections --------------------------------------------------------------------------------------------------------


def _emotion(metrics: Mapping[str, Any]) -> Section | None:
    emotion = metrics.get("emotion")
    if not emotion:
        return None
    figure = figures_of(metrics, emotion, "emotion")
    figures = [figure("accuracy", "accuracy", percent)]
    rules = emotion.get("rules") or {}
    for rule in (rule for rule in rules if rule != emotion["rule"]):
        about = f"{rules[rule]['count']} images, where {RULE_WORDS.get(rule, rule)}"
        by_rule = figures_of(metrics, rules[rule], f"emotion.rules.{rule}")
        figures.append(by_rule("accuracy", f"  {rule.replace('_', ' ')}", percent, about))
    figures += [
        figure("majority", "majority label", percent, "accuracy of always saying the commonest label"),
        figure("macro_f1", "macro-F1", number, "mean over the emotions among those labels"),
        figure("valence_accuracy", "valence accuracy", percent, _valence_words(emotion)),
        *_probabilities(emotion, figure),
    ]
    about = f"{emotion['count']} of {emotion['total']} images, where {RULE_WORDS.get(emotion['rule'], emotion['rule'])}"
    return Section("emotion", about, [found for found in figures if found is not None])


def _probabilities(emotion: Mapping[str, Any], figure: Callable[..., Figure | None]) -> list[Figure | None]:
    """With what they were before calibration, where it changed them."""
    many = number_of(labels_of(emotion))
    figures = {
        "nll": ("log loss", f"of the {many} probabilities, against people's shares"),
        "js": ("Jensen-Shannon", f"distance of the {many} probabilities to people's shares"),
        "ece_answers": (
            "calibration",
            "error of the likeliest emotion's probability, as the share of people who feel it",
        ),
        "ece": ("label calibration", "its error as the chance to be the label; people who disagree make it large"),
    }
    temperature = emotion.get("temperature", 1)
    words = "by several temperatures" if temperature is None else f"by the temperature {temperature:.3g}"
    found = []
    for key, (name, about) in figures.items():
        found.append(figure(key, name, number, about))
        if temperature != 1:
            found.append(figure(f"{key}_uncalibrated", "  uncalibrated", number, f"before calibration {words}"))
    return found


def _valence_words(emotion: Mapping[str, Any]) -> str:
    return f"positive or negative, on the {emotion.get('valence_count')} images whose label is either"


def _captions(metrics: Mapping[str, Any]) -> Section:
    where = [metrics["captions_scored"]] if metrics.get("captions_scored") else []
    where += [f"{metrics['images']} images"] if metrics.get("images") is not None else []
    where += [f"tokenizer: {metrics['tokenizer']}"] if metrics.get("tokenizer") else []
    return Section(CAPTIONS, ", ".join(where), _scores(metrics, metrics.get("captions") or {}, "captions"))


def _filtered(metrics: Mapping[str, Any]) -> Section | None:
    filtered = metrics.get("captions_filtered")
    if not filtered:
        return None
    rule = RULE_WORDS.get(filtered["rule"], filtered["rule"])
    about = f"only the {filtered['count']} images whose predicted emotion is the annotators', where {rule}"
    return Section(FILTERED, about, _scores(metrics, filtered["scores"], "captions_filtered"))


def _explanations(metrics: Mapping[str, Any]) -> Section | None:
    found = metrics.get("explanations")
    if not found:
        return None
    figure = figures_of(metrics, found, "explanations")
    common, people = found.get("most_common"), found.get("human_mean_length")
    figures = [
        figure("similes", "similes", percent, f"people: {percent(found.get('human_similes'))}"),
        figure("distinct", "distinct", percent, "different explanations by all of them"),
        figure("vocabulary", "vocabulary", count, "different words"),
        figure("mean_length", "mean length", length, "words" + (f"; people: {length(people)}" if people else "")),
        Figure("explanations.most_common.count", "most common", common["count"], count, about=repr(common["text"]))
        if common
        else None,
    ]
    if novelty := found.get("novelty"):
        figure = figures_of(metrics, novelty, "explanations.novelty")
        about = f"longest common subsequence with any of {novelty['training_texts']} training texts, in words, mean "
        about += f"over {novelty['captions']} explanations; lower is more novel"
        figures.append(figure("max_lcs", "max-LCS", length, about))
        figures.append(figure("mean_lcs", "mean-LCS", length, "the same, mean over the training texts"))
    return Section("explanations", "", [figure for figure in figures if figure is not None])


def _alignment(metrics: Mapping[str, Any]) -> Section | None:
    found = metrics.get("alignment")
    if not found:
        return None
    figure = figures_of(metrics, found, "alignment")
    about = f"{found['count']} of {found['total']} images, where {RULE_WORDS.get(found['rule'], found['rule'])}"
    figures = [figure("accuracy", "accuracy", percent, "a classifier takes the text for the annotators' emotion")]
    for rule, values in (found.get("rules") or {}).items():
        if rule != found["rule"]:
            on = f"{values['count']} images, where {RULE_WORDS.get(rule, rule)}"
            by_rule = figures_of(metrics, values, f"alignment.rules.{rule}")
            figures.append(by_rule("accuracy", f"  {rule.replace('_', ' ')}", percent, on))
    figures.append(figure("cross_entropy", "cross-entropy", number, "of its probabilities with people's shares"))
    return Section("emotional alignment", about, [figure for figure in figures if figure is not None])


def _vad(metrics: Mapping[str, Any]) -> Section | None:
    found = metrics.get("vad")
    if not found:
        return None
    figures = []
    for name in ("valence", "arousal", "dominance"):
        figure = figures_of(metrics, found[name], f"vad.{name}")
        figures += [
            figure("error", f"{name} error", number, "mean absolute difference from people's words"),
            figure("bias", "  bias", number, "mean difference; above 0: more than people's"),
            figure("correlation", "  correlation", number),
        ]
    about = f"words of {found['valence']['count']} images, lexicon: {found.get('file') or found.get('lexicon')}"
    return Section("VAD", about, [figure for figure in figures if figure is not None])


def _scores(metrics: Mapping[str, Any], scores: Mapping[str, float], section: str) -> list[Figure]:
    names = [n for n in CAPTION_ORDER if n in scores] + [n for n in scores if n not in CAPTION_ORDER]
    figure = figures_of(metrics, scores, section)
    return [found for name in names if (found := figure(name, name, number)) is not None]
