"""match@1 by VLE: is an explanation closer to its own picture than to others, by another network than its writer?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from common.progress import progress
from data.images import ImageError, open_image
from trainer.prediction.matching import blocks_of, rank_of

if TYPE_CHECKING:
    from trainer.prediction.judge import Judge

Row = dict[str, Any]


def add_vle_matches(
    rows: Sequence[Row], judge: Judge, *, count: int, seed: int, max_pixels: int, chosen: bool
) -> str | None:
    """Set "match_vle" of up to `count` random rows; return a note on what is left out.

    {"same": {"rank", "of", "people"}, "random": the same, "chosen"}: rank of the own picture, by the match logit of the
    explanation, among `of` pictures of the same predicted emotion (those of "match"), and among random ones; people:
    the rank by an annotator's text instead, one of the image at random. Left out: "same" if no other image has the
    emotion, "random" without emotions, people without annotations.

    Args:
        rows: with "id", "image", "emotion", "explanation", and "references" if there are any.
        chosen: whether the judge chose these explanations too.
    """
    if not judge.matches:
        return f"left out: {judge.folder} is of stage=vle_pbc, which compares no texts"
    emotional = any(row["emotion"] is not None for row in rows)
    by_id = {row["id"]: row for row in rows if row["emotion"] is not None or not emotional}
    everything = [{"id": id, "emotion": None} for id in by_id]
    groups = {"same": [*by_id.values()], "random": everything} if emotional else {"random": everything}
    groups = {name: blocks_of(group, count=count, seed=seed)[0] for name, group in groups.items()}
    asked = blocks_of(everything, count=count, seed=seed)[1]
    if not groups["random"]:
        return "left out: there is only one image"
    with progress(sum(len(block) for blocks in groups.values() for block in blocks), "VLE", unit="image") as bar:
        for name, blocks in groups.items():
            for block in blocks:
                members = [by_id[id] for id in block]
                new = [row for row in members if row["id"] in asked and name not in row.get("match_vle", {})]
                for id, ranks in _ranks(members, new, judge, seed=seed, max_pixels=max_pixels).items():
                    by_id[id].setdefault("match_vle", {"chosen": chosen})[name] = ranks
                bar.update(len(block))
    return None


def _ranks(
    members: Sequence[Row], new: Sequence[Row], judge: Judge, *, seed: int, max_pixels: int
) -> dict[str, dict[str, float]]:
    """Return the ranks of the `new` rows among the pictures of the members that can be opened."""
    pictures = {}
    for row in members:
        with suppress(ImageError):
            pictures[row["id"]] = open_image(Path(row["image"]), max_pixels=max_pixels)
    texts = {row["id"]: {"rank": row["explanation"], **_of_people(row, seed)} for row in new if row["id"] in pictures}
    if len(pictures) < 2 or not texts:
        return {}
    different = [*dict.fromkeys(text for both in texts.values() for text in both.values())]
    scores = dict(zip(different, torch.from_numpy(judge.matrix(different, [*pictures.values()])), strict=True))
    own = {id: number for number, id in enumerate(pictures)}
    return {
        id: {key: rank_of(own[id], scores[text]) for key, text in both.items()} | {"of": len(pictures)}
        for id, both in texts.items()
    }


def _of_people(row: Mapping[str, Any], seed: int) -> dict[str, str]:
    texts = [text for text in row.get("references") or () if text.strip()]
    return {"people": Random(f"{seed}/people/{row['id']}").choice(texts)} if texts else {}
