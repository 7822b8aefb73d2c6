"""Tables and verdict on whether explanations follow from the picture, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.html.tables import Cell, Row, Table, Written, count, interval, length, number, percent, signed
from trainer.metrics.baselines import COMMONEST, NEAREST, OTHER, RANDOM
from trainer.metrics.grounding import FIGURES

Metrics = Mapping[str, Any]

MODEL = "the model"
NAMES = {
    COMMONEST: "commonest reason",
    RANDOM: "random reason",
    NEAREST: "nearest picture",
    OTHER: "another picture",
}
ABOUT = {
    COMMONEST: "the most frequent training text{of}",
    RANDOM: "a random training text{of}",
    NEAREST: "the text of the training picture with the most similar features",
    OTHER: "the model's own explanation of another picture{of_same}",
}
SHOWN = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
POINTED = {
    "accuracy": ("the subject's words", "the strongest part of their map"),
    "whole_text": ("the whole text", "the strongest part of the map of all words together"),
    "center": ("center", "of the picture, without a map"),
    "random": ("random", "part: the share of parts inside"),
    "vle": ("VLE", "the patch that the text is most probably about"),
    "vle_other": ("VLE, another reason", "the same for a text about other pictures, without the subject"),
    "vle_random": ("VLE, random", "patch: the share of patches inside"),
}
GROUPS = {"same": "same emotion", "random": "any emotion"}  # of the pictures in match_vle
HALLUCINATIONS = 3  # shown of each kind


def blind_sentences(metrics: Metrics) -> str:
    """Return the verdict of metrics["baselines"] if the model is blind, else ""."""
    found = metrics.get("baselines") or {}
    blind = found.get("blind") or {"unbeaten": ()}
    same = " of the same emotion" if found.get("by_emotion") else ""
    sentences = {
        OTHER: f"These explanations do not depend on the picture: another picture's explanation{same} scores as well",
        NEAREST: "These explanations are no better than the text of the most similar training picture",
    }
    return " ".join(f"{sentences[name]} ({_against(found, name)})." for name in blind["unbeaten"])


def _against(found: Metrics, name: str) -> str:
    """Return "CIDEr 0.350 against 0.360, lead [-0.050, +0.030]", the model's score first."""
    score = found["blind"]["score"]
    figure = found["systems"][name]["differences"][score]
    lead = interval(figure["interval"], signed(number))
    return f"{score.partition('.')[2]} {number(figure['second'])} against {number(figure['first'])}, lead {lead}"


def looking_tables(metrics: Metrics) -> list[Table]:
    """Return the non-empty tables."""
    baselines, grounding = metrics.get("baselines"), metrics.get("grounding")
    tables = [
        *(_baseline_tables(metrics, baselines) if baselines else ()),
        _likelihood(metrics, metrics.get("looking") or {}),
        _vle_match(metrics, (metrics.get("looking") or {}).get("match_vle") or {}),
        _pointing(metrics, (metrics.get("looking") or {}).get("pointing") or {}),
        *(_grounding_tables(metrics, grounding) if grounding else ()),
    ]
    return [table for table in tables if table.rows]


def _cell(metrics: Metrics, values: Metrics, section: str, key: str, written: Written) -> Cell:
    place = f"{section}.{key}"
    return Cell(values.get(key), written, (metrics.get("intervals") or {}).get(place), key=place)


def _baseline_tables(metrics: Metrics, found: Metrics) -> Iterable[Table]:
    systems = found["systems"]
    keys = [key for key in SHOWN if key in metrics["captions"]]
    of = {"of": " of the model's emotion", "of_same": " of the same emotion"}
    of = of if found["by_emotion"] else dict.fromkeys(of, "")
    about = "Texts that are not written from the picture, scored in the model's place. "
    about += " ".join(f"{NAMES[name].capitalize()}: {ABOUT[name].format(**of)}." for name in systems)
    rows = [Row(MODEL, [_cell(metrics, metrics["captions"], "captions", key, number)._replace(key="") for key in keys])]
    leads = []
    for name, system in systems.items():
        place = f"baselines.systems.{name}.captions"
        rows.append(Row(NAMES[name], [_cell(metrics, system["captions"], place, key, number) for key in keys]))
        figures = [system["differences"].get(f"captions.{key}") for key in keys]
        leads.append(Row(NAMES[name], [_lead(figure) for figure in figures]))
    yield Table("Baselines", about, keys, rows)
    about = "How much higher the model scores, with the 95 % interval of the difference."
    if found["blind"] and not found["blind"]["verdict"]:
        about += f" By {found['blind']['score'].partition('.')[2]}, its explanations depend on the picture."
    yield Table("Lead of the model over the baselines", about, keys, leads)


def _lead(figure: Metrics | None) -> Cell:
    return Cell(figure["difference"], signed(number), figure["interval"]) if figure else Cell("")


def _likelihood(metrics: Metrics, found: Metrics) -> Table:
    rows = []
    if match := found.get("match"):
        chance = f"likelihood of each explanation with its own picture against {match['of'] - 1} others of the same "
        chance += f"emotion: the own comes first; by chance {percent(match['chance'])}"
        rows.append(Row("match@1", [_cell(metrics, match, "looking.match", "first", percent)], chance))
        rank = f"of {match['of']}; by chance {length((1 / match['chance'] + 1) / 2)}"
        rows.append(Row("mean rank", [_cell(metrics, match, "looking.match", "mean_rank", length)], rank))
    if swap := found.get("swap"):
        about = f"the true subject is likelier than another in the same sentence; {swap['count']} images; without the "
        about += f"picture {percent(swap['blind'])}"
        rows.append(Row("swap", [_cell(metrics, swap, "looking.swap", "accuracy", percent)], about))
    return Table("Likelihood with the own picture", "", (), rows)


def _vle_match(metrics: Metrics, found: Metrics) -> Table:
    groups = [group for group in GROUPS if group in found]
    about = "Another network, VLE, scores a text with several pictures: how often the own picture comes first. "
    about += " ".join(
        f"{GROUPS[group].capitalize()}: {found[group]['of']} pictures, {found[group]['count']} texts."
        for group in groups
    )
    about += " People: one annotator's text for each picture."
    if found.get("chosen"):
        about += " VLE also chose the model's texts among several, so they are optimized for this figure."
    figures = {"first": MODEL, "people": "people", "chance": "chance"}
    rows = [
        Row(name, [_cell(metrics, found[group], f"looking.match_vle.{group}", key, percent) for group in groups])
        for key, name in figures.items()
        if any(key in found[group] for group in groups)
    ]
    return Table("Match by VLE", about, [GROUPS[group] for group in groups], rows)


def _pointing(metrics: Metrics, found: Metrics) -> Table:
    rows = [
        Row(name, [_cell(metrics, found, "looking.pointing", key, percent)], about)
        for key, (name, about) in POINTED.items()
        if key in found
    ]
    about = "Where the point lies inside the subject's boxes, of the explanations that name the true subject"
    return Table("Pointing game", f"{about}; {found.get('count')} images.", (), rows)


def _grounding_tables(metrics: Metrics, found: Metrics) -> Iterable[Table]:
    kinds = found["kinds"]
    meaning = {
        "precision": "Of the explanations that name a kind, the share that names true values only.",
        "recall": "The share of images whose true value is named.",
    }
    systems = (metrics.get("baselines") or {"systems": {}})["systems"]
    sources = {MODEL: (kinds, "grounding.kinds")}
    sources |= {NAMES[name]: (of.get("grounding") or {}, f"baselines.systems.{name}.grounding")
                for name, of in systems.items()}  # fmt: skip
    for figure in FIGURES:
        rows = [
            Row(name, [_cell(metrics, of.get(kind) or {}, f"{place}.{kind}", figure, percent) for kind in kinds])
            for name, (of, place) in sources.items()
        ]
        rows.append(Row("people", [Cell(kinds[kind]["people"][figure], percent) for kind in kinds]))
        about = f"{meaning[figure]} {found['images']} images, facts: {found['file']}."
        yield Table(f"What the explanations name: {figure}", about, [*kinds], rows)
    rows = [
        Row(f"{kind}: {wrong['named']}", [Cell(wrong["count"], count)], f"in {wrong['of']} images of {wrong['true']}")
        for kind, wrongs in found["hallucinations"].items()
        for wrong in wrongs[:HALLUCINATIONS]
    ]
    yield Table("Hallucinations", "False values and how often they are named, by true value.", (), rows)
