"""The sections of metrics.json on whether explanations follow from the picture. Functions as in trainer.score.parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.metrics import bootstrap
from trainer.metrics.baselines import baseline_texts as texts_of_baselines
from trainer.metrics.baselines import blind_verdict
from trainer.metrics.bootstrap import Statistic
from trainer.metrics.caption_counts import caption_statistics
from trainer.metrics.grounding import Grounding, grounding_scores
from trainer.score.parts import has_texts, texts_of
from trainer.score.scores import Row, Scores, Settings

POINTING = {"accuracy": "hit", "whole_text": "mean_map", "center": "center", "random": "area"}  # figure: field of a row
POINTING |= {"vle": "vle", "vle_other": "vle_other", "vle_random": "vle_area"}  # with a VLE that classifies regions


def baseline_texts(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    """Set the texts of the baselines; `captions` scores them along with the model's, `baselines` compares."""
    if settings.baselines is not None:
        found.baselines = settings.baselines
    elif has_texts(rows) and any(row["explanation"] for row in rows):
        training = settings.training_texts or (), settings.training_emotions, settings.training_languages
        found.baselines, notes = texts_of_baselines(rows, *training, seed=settings.seed)
        found.note(*notes)


def grounding(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if settings.facts is None or not any(row["explanation"] for row in rows):
        return
    section, each, statistics = grounding_scores(*texts_of(rows), Grounding(settings.facts))
    found.metrics["grounding"] = section
    found.add("grounding", each, statistics)


def baselines(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    """Compare the model with each baseline on the images that have the baseline's text."""
    if not found.baseline_scores:
        return
    both = {f"{name}.{key}": pair for name in found.baseline_scores
            for key, pair in _statistics(name, rows, settings, found).items()}  # fmt: skip
    theirs, ours = ({key: pair[side] for key, pair in both.items()} for side in (0, 1))
    systems: dict[str, Any] = {
        name: {"images": len(found.baselines[name]), "differences": {}} for name in found.baseline_scores
    }
    for key, statistic in theirs.items():
        _put(systems, key, bootstrap.score(statistic, len(rows)))
    for key, figure in bootstrap.paired(theirs, ours, len(rows), seed=settings.seed).items():
        name, _, rest = key.partition(".")
        systems[name]["differences"][rest] = figure
    found.metrics["baselines"] = {
        "systems": systems,
        "by_emotion": any(row.get("emotion") for row in rows),
        "blind": blind_verdict({name: system["differences"] for name, system in systems.items()}, len(rows)),
    }
    found.add("baselines", {}, {f"systems.{key}": statistic for key, statistic in theirs.items()})


def _put(tree: dict[str, Any], key: str, value: float | None) -> None:
    """Set tree["a"]["b"]["c"] for the key "a.b.c"."""
    *path, last = key.split(".")
    for name in path:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _statistics(
    name: str, rows: Sequence[Row], settings: Settings, found: Scores
) -> dict[str, tuple[Statistic, Statistic]]:
    """Return the statistics of a baseline and of the model, over the images that have the baseline's text."""
    ids, texts, scores = [row["id"] for row in rows], found.baselines[name], found.baseline_scores[name]
    own = {id: text for id, text in texts_of(rows)[0].items() if id in texts}
    values = (
        {id: scores.per_image[id] | scores.counts.get(id, {}) for id in texts},
        {id: found.images[id] | found.counts.get(id, {}) for id in texts},
    )
    captions = [caption_statistics([each.get(id) for id in ids], [*scores.scores]) for each in values]
    sides = [{f"captions.{key}": statistic for key, statistic in side.items()} for side in captions]
    if found.metrics["grounding"]:
        measured = Grounding(settings.facts)
        for side, said in zip(sides, (texts, own), strict=True):
            side |= {f"grounding.{key}": statistic for key, statistic in measured.statistics(said, ids).items()}
    return {key: (sides[0][key], sides[1][key]) for key in sides[0]}


def looking(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    """Summarize the rows' "match" (rank of the own picture by likelihood), "match_vle" (the same by VLE), "swap" (true
    against another subject) and "pointing" (trainer.report.pointing)."""
    section: dict[str, Any] = {}
    statistics: dict[str, Statistic] = {}
    matches, swaps, pointings = ([row.get(key) for row in rows] for key in ("match", "swap", "pointing"))
    if any(matches):
        ranks = [match and match["rank"] for match in matches]
        statistics["match.first"] = bootstrap.mean([rank and float(rank == 1) for rank in ranks])
        statistics["match.mean_rank"] = bootstrap.mean(ranks)
        sizes = [match["of"] for match in matches if match]
        section["match"] = {"count": len(sizes), "of": max(sizes), "chance": sum(1 / n for n in sizes) / len(sizes)}
    if vle := [row["match_vle"] for row in rows if row.get("match_vle")]:
        section["match_vle"] = {"chosen": any(match.get("chosen") for match in vle)}
        for group in ("same", "random"):
            _add_vle(group, [(row.get("match_vle") or {}).get(group) for row in rows], section["match_vle"], statistics)
    if any(pointings):
        for key, field in POINTING.items():
            values = [pointing.get(field) if pointing else None for pointing in pointings]
            if any(value is not None for value in values):
                statistics[f"pointing.{key}"] = bootstrap.mean(values)
        section["pointing"] = {"count": sum(map(bool, pointings)), "hits": sum(bool(p and p["hit"]) for p in pointings)}
    if any(swaps):
        statistics["swap.accuracy"] = bootstrap.mean([swap and float(swap["right"]) for swap in swaps])
        statistics["swap.blind"] = bootstrap.mean([swap and float(swap.get("blind", False)) for swap in swaps])
        section["swap"] = {"count": sum(map(bool, swaps))}
    for key, statistic in statistics.items():
        _put(section, key, bootstrap.score(statistic, len(rows)))
    if section:
        found.metrics["looking"] = section
        found.add("looking", {}, statistics)


def _add_vle(
    group: str, matches: Sequence[dict[str, Any] | None], section: dict[str, Any], statistics: dict[str, Statistic]
) -> None:
    """Add the shares of the images whose explanation, and whose annotator's text, has the own picture at rank 1."""
    if not any(matches):
        return
    for figure, field in (("first", "rank"), ("people", "people")):
        ranks = [match.get(field) if match else None for match in matches]
        if any(ranks):
            key = f"match_vle.{group}.{figure}"
            statistics[key] = bootstrap.mean([None if rank is None else float(rank == 1) for rank in ranks])
    sizes = [match["of"] for match in matches if match]
    section[group] = {"count": len(sizes), "of": max(sizes), "chance": sum(1 / n for n in sizes) / len(sizes)}
