"""Tables of the scores in metrics.json, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.html.tables import Cell, Row, Table, Written, count, length, number, percent, screen_text
from data.emotions import labels_of, number_word
from trainer.metrics.captions import NAMES
from trainer.metrics.emotions import RULE_WORDS, RULES
from trainer.metrics.expert_sections import expert_tables
from trainer.metrics.groups import group_table
from trainer.score.looking_tables import blind_sentences, looking_tables

Metrics = Mapping[str, Any]

DIMENSIONS = ("valence", "arousal", "dominance")
SOURCE_WORDS = {  # of trainer.metrics.ratings
    "prediction": "the network",
    "words": "its words in the lexicon",
    "label": "its emotion's name in the lexicon",
    "training_mean": "mean of the training",
    "mean": "mean of these images",
}
CAPTION_ORDER = (*NAMES, "CLIPScore", "RefCLIPScore", "CLIP match")
BY_RULE: dict[str, tuple[str, Written]] = {
    "accuracy": ("accuracy", percent),
    "macro_f1": ("macro-F1", number),
    "valence_accuracy": ("valence accuracy", percent),
    "majority": ("majority label", percent),
    "valence_majority": ("majority valence", percent),
    "count": ("images with a label", count),
    "valence_count": ("of them with a valence", count),
}
PROBABILITIES = {
    "nll": ("log loss", "of the {} probabilities, against people's shares"),
    "js": ("Jensen-Shannon", "distance of the {} probabilities to people's shares"),
    "kl": ("Kullback-Leibler", "divergence of people's shares from them, in nats"),
    "chebyshev": ("Chebyshev", "largest difference between two shares"),
    "clark": ("Clark", "root of the sum of squared relative differences"),
    "canberra": ("Canberra", "sum of the relative differences"),
    "cosine": ("cosine", "similarity to people's shares, 1 if equal"),
    "intersection": ("intersection", "sum of the smaller shares, 1 if equal"),
    "ece_answers": ("calibration", "error of the likeliest emotion's probability, as the share of people who feel it"),
    "ece": ("label calibration", "its error as the chance to be the label; people who disagree make it large"),
}


def metrics_text(metrics: Metrics) -> str:
    """Return all scores with their intervals, rules and notes, for the terminal."""
    notes = [f"note: {note}" for note in dict.fromkeys(metrics.get("notes") or ())]
    tables = [*score_tables(metrics), *looking_tables(metrics), *expert_tables(metrics)]
    tables += [group_table(metrics["groups"])] if metrics.get("groups") else []
    parts = [*tables, interval_legend(metrics), *notes]
    blind = blind_sentences(metrics)
    return (screen_text([blind]) + "\n\n" if blind else "") + (
        screen_text(part for part in parts if part) or "no scores"
    )


def interval_legend(metrics: Metrics) -> str:
    """Return the legend of the intervals, "" without any."""
    if not metrics.get("intervals") or not metrics.get("bootstrap"):
        return ""
    return f"in brackets: 95 % intervals of {metrics['bootstrap']['replicates']} bootstrap samples of the images"


def score_tables(metrics: Metrics) -> list[Table]:
    """Return the non-empty tables in reading order, without `looking_tables` and `expert_tables`."""
    builders = {
        _by_rule: "emotion",
        _captions: "captions",
        _probabilities: "emotion",
        _explanations: "explanations",
        _alignment: "alignment",
        _vad: "vad",
        _ratings: "ratings",
        _languages: "languages",
    }
    tables = [build(metrics, found) for build, key in builders.items() if (found := metrics.get(key))]
    return [table for table in tables if table.rows]


def _cell(metrics: Metrics, section: str, values: Metrics, key: str, written: Written) -> Cell:
    place = f"{section}.{key}"
    return Cell(values.get(key), written, (metrics.get("intervals") or {}).get(place), key=place)


def _rows(metrics: Metrics, section: str, values: Metrics, rows: Mapping[str, tuple[str, Written, str]]) -> list[Row]:
    """Return a row of one cell for each key of `rows` (name, format, explanation) that `values` has."""
    return [
        Row(name, [_cell(metrics, section, values, key, written)], about)
        for key, (name, written, about) in rows.items()
        if key in values
    ]


def _by_rule(metrics: Metrics, emotion: Metrics) -> Table:
    headline = emotion["rule"]
    by_rule = emotion.get("rules") or {headline: emotion}
    order = sorted(by_rule, key=lambda rule: (rule != headline, RULES.index(rule) if rule in RULES else -1))
    section = {rule: "emotion" if rule == headline else f"emotion.rules.{rule}" for rule in order}
    rows = [
        Row(name, [_cell(metrics, section[rule], by_rule[rule], key, written) for rule in order])
        for key, (name, written) in BY_RULE.items()
        if any(key in by_rule[rule] for rule in order)
    ]
    about = f"{emotion['count']} of {emotion['total']} images have a label under the first rule. "
    about += " ".join(f"{_words(rule).capitalize()}: {RULE_WORDS.get(rule, rule)}." for rule in order)
    if "macro_f1" in emotion:
        about += " Macro-F1: mean over the emotions among the labels."
    if "majority" in emotion:
        about += " Majority: accuracy of always saying the commonest."
    return Table("Emotion", about, [_words(rule) for rule in order], rows)


def _captions(metrics: Metrics, scores: Metrics) -> Table:
    filtered = metrics.get("captions_filtered")
    about = [metrics["captions_scored"]] if metrics.get("captions_scored") else []
    about += [f"{metrics['images']} images"] if metrics.get("images") is not None else []
    about += [f"tokenizer: {metrics['tokenizer']}"] if metrics.get("tokenizer") else []
    sentence = _sentence(", ".join(about))
    sides = {"captions": scores}
    if filtered:
        sides["captions_filtered"] = filtered["scores"]
        sentence += f" Filtered: only the {filtered['count']} images whose predicted emotion is the annotators', where "
        sentence += f"{RULE_WORDS.get(filtered['rule'], filtered['rule'])}."
    names = [n for n in CAPTION_ORDER if n in scores] + [n for n in scores if n not in CAPTION_ORDER]

    def cells(name: str) -> list[Cell]:
        return [_cell(metrics, *side, name, number) if name in side[1] else Cell("") for side in sides.items()]

    title = "Explanation" if metrics.get("emotion") else "Captions"
    columns = ["all", "filtered"] if filtered else [""]
    return Table(title, sentence, columns, [Row(name, cells(name)) for name in names])


def _probabilities(metrics: Metrics, emotion: Metrics) -> Table:
    """Return the scores of the probabilities, and those before calibration if the temperature is not 1."""
    temperature = emotion.get("temperature", 1)
    by = "several temperatures" if temperature is None else f"the temperature {temperature:.3g}"
    rows = {}
    for key, (name, about) in PROBABILITIES.items():
        rows[key] = (name, number, about.format(number_word(labels_of(emotion))))
        if temperature != 1:
            rows[f"{key}_uncalibrated"] = ("  uncalibrated", number, f"before calibration by {by}")
    return Table("Probabilities of the emotions", "", (), _rows(metrics, "emotion", emotion, rows))


def _explanations(metrics: Metrics, found: Metrics) -> Table:
    people = found.get("human_mean_length")
    kinds = {
        "similes": ("similes", percent, f"people: {percent(found.get('human_similes'))}"),
        "distinct": ("distinct", percent, "different explanations by all of them"),
        "commonest_of_emotion": ("emotion's commonest", percent, "images with the commonest text of their emotion"),
        "vocabulary": ("vocabulary", count, "different words"),
        "mean_length": ("mean length", length, "words" + (f"; people: {length(people)}" if people else "")),
    }
    rows = _rows(metrics, "explanations", found, kinds)
    if common := found.get("most_common"):
        rows.append(Row("most common", [Cell(common["count"], count)], repr(common["text"])))
    if novelty := found.get("novelty"):
        about = f"longest common subsequence with any of {novelty['training_texts']} training texts, in words, mean "
        about += f"over {novelty['captions']} explanations; lower is more novel"
        kinds = {"max_lcs": ("max-LCS", length, about)}
        kinds["mean_lcs"] = ("mean-LCS", length, "the same, mean over the training texts")
        rows += _rows(metrics, "explanations.novelty", novelty, kinds)
    return Table("Language of the explanations", "", (), rows)


def _alignment(metrics: Metrics, found: Metrics) -> Table:
    accuracy = {"accuracy": ("accuracy", percent, "a classifier takes the text for the annotators' emotion")}
    rows = _rows(metrics, "alignment", found, accuracy)
    for rule, values in (found.get("rules") or {}).items():
        if rule != found["rule"]:
            on = f"{values['count']} images, where {RULE_WORDS.get(rule, rule)}"
            by_rule = {"accuracy": (f"  {_words(rule)}", percent, on)}
            rows += _rows(metrics, f"alignment.rules.{rule}", values, by_rule)
    entropy = {"cross_entropy": ("cross-entropy", number, "of its probabilities with people's shares")}
    rows += _rows(metrics, "alignment", found, entropy)
    about = f"{found['count']} of {found['total']} images, where {RULE_WORDS.get(found['rule'], found['rule'])}"
    return Table("Emotional alignment", _sentence(about), (), rows)


def _vad(metrics: Metrics, found: Metrics) -> Table:
    same = found.get("same_emotion") or {}
    rows = [
        Row(key + suffix, [_cell(metrics, f"{section}.{n}", values.get(n) or {}, key, number) for n in DIMENSIONS])
        for section, suffix, values in (("vad", "", found), ("vad.same_emotion", ", same emotion", same))
        if values
        for key in ("error", "bias", "correlation")
    ]
    about = (
        f"Words of {found['valence']['count']} images, lexicon: {found.get('file') or found.get('lexicon')}. Error: "
        "mean absolute difference from people's words. Bias: mean difference, above 0 where the model's words have "
        "more."
    )
    if same:
        about += f" Same emotion: only the words people wrote for the model's emotion, in {same['valence']['count']} "
        about += "images."
    return Table("Valence, arousal, dominance", about, DIMENSIONS, rows)


def _ratings(metrics: Metrics, found: Metrics) -> Table:
    """Return a row for each figure of each source, the sources of a figure below each other."""
    scale, dimensions = found.get("scale"), [n for n in DIMENSIONS if any(n in v for v in found["sources"].values())]
    figures = {"correlation": "correlation", "error": "error"}
    if scale != [-1, 1]:
        figures["error_on_scale"] = f"error, scale {scale[0]:g} to {scale[1]:g}" if scale else "error, own scale"
    figures["rmse"] = "root mean square"
    rows = [
        Row(f"{written}, {SOURCE_WORDS[source]}", [_rating_cell(metrics, source, values, n, key) for n in dimensions])
        for key, written in figures.items()
        for source, values in found["sources"].items()
        if any(key in of_dimension for of_dimension in values.values())
    ]
    counts = {f"{v['count']}" for values in found["sources"].values() for v in values.values()}
    about = (
        f"Against people's mean ratings of {found['images']} images, from −1 to 1 unless a scale is named. "
        "Correlation: Pearson's. Error: mean absolute difference."
    )
    about += "" if len(counts) == 1 else " Images of each source: " + _counted(found["sources"]) + "."
    return Table("Valence and arousal as people rate them", about, dimensions, rows)


def _rating_cell(metrics: Metrics, source: str, values: Metrics, dimension: str, key: str) -> Cell:
    return _cell(metrics, f"ratings.{source}.{dimension}", values.get(dimension) or {}, key, number)


def _counted(sources: Metrics) -> str:
    counts = ((SOURCE_WORDS[source], min(v["count"] for v in values.values())) for source, values in sources.items())
    return ", ".join(f"{name} {least}" for name, least in counts)


def _languages(metrics: Metrics, found: Metrics) -> Table:
    written = {"images": count, "accuracy": percent, **dict.fromkeys(("BLEU-4", "ROUGE-L", "CIDEr", "METEOR"), number)}
    keys = [key for key in written if any(key in values for values in found.values())]
    rows = [Row(name or "not named", [Cell(v.get(key), written[key]) for key in keys]) for name, v in found.items()]
    used = {v["tokenizer"] for v in found.values() if v.get("tokenizer")}
    about = "; ".join(f"{t}: {', '.join(n for n, v in found.items() if v.get('tokenizer') == t)}" for t in sorted(used))
    return Table("By language", f"Tokenizer: {about}.", keys, rows)


def _words(rule: str) -> str:
    return rule.replace("_", " ")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
