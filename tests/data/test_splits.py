"""data/prepare/splits.py: v1's split equals the original's, v2's follows its rules; the order does not matter."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from data.prepare.rows import Row
from data.prepare.splits import Annotation, Shares, contrastive_split, parts, random_split, split_rows

USUAL = Shares(0.85, 0.05, 0.10)
NAMES = [f"Style/p{i:02d}" for i in range(30)]


def numbers(split: dict[str, str], label: str) -> list[int]:
    return sorted(int(name[-2:]) for name, its in split.items() if its == label)


@pytest.mark.parametrize(
    ("shares", "val", "test"),
    [
        (USUAL, [9, 18], [4, 11, 15]),  # 5 held out: scikit-learn rounds 0.15000000000000002 * 30 up
        (Shares(0.7, 0.2, 0.1), [2, 4, 8, 9, 15, 18, 26], [3, 11, 27]),
        (Shares(0.8, 0.0, 0.2), [], [4, 8, 9, 11, 15, 18]),
    ],
)
def test_v1_equals_train_test_split(shares: Shares, val: list[int], test: list[int]) -> None:
    """Expected values from train_test_split of scikit-learn 1.9, with the original's arguments."""
    split = random_split(NAMES, shares=shares, seed=2021)
    assert split.keys() == set(NAMES)
    assert numbers(split, "val") == val and numbers(split, "test") == test


def test_v1_has_the_published_number_of_test_paintings() -> None:
    split = random_split([f"S/{i}" for i in range(80031 - 701)], shares=USUAL, seed=2021)
    assert Counter(split.values()) == {"train": 67430, "val": 3967, "test": 7933}


def test_seed_but_not_order_changes_the_split() -> None:
    shuffled = random.Random(1).sample(NAMES, len(NAMES))
    assert random_split(shuffled, shares=USUAL, seed=1) == random_split(NAMES, shares=USUAL, seed=1)
    assert random_split(NAMES, shares=USUAL, seed=2) != random_split(NAMES, shares=USUAL, seed=1)


def test_names_are_sorted_by_style_and_painting_joined() -> None:
    """As in the original: without "/", A/z sorts after A-b/c."""
    names = ["A/z", "A-b/c", "Ab/c", "B/a"]
    drawn = random_split(names, shares=Shares(0.0, 0.0, 1.0), seed=0)
    together = random_split(["S/0", "S/1", "S/2", "S/3"], shares=Shares(0.0, 0.0, 1.0), seed=0)
    assert set(drawn.values()) == set(together.values()) == {"test"}
    half = Shares(0.5, 0.0, 0.5)
    rank = dict(zip(sorted(names, key=lambda name: name.replace("/", "")), NAMES, strict=False))
    expected = random_split(list(rank.values()), shares=half, seed=3)
    assert random_split(names, shares=half, seed=3) == {name: expected[rank[name]] for name in names}


@pytest.mark.parametrize("shares", [Shares(1, 0, 0), Shares(0, 1, 0), Shares(0, 0, 1)])
def test_one_split_can_have_everything(shares: Shares) -> None:
    wanted = {name: label for label, share in shares._asdict().items() if share for name in NAMES}
    assert random_split(NAMES, shares=shares, seed=0) == wanted
    v2 = contrastive_split({"N/a": 5}, NAMES, set(), annotations=5, shares=shares, seed=0)
    assert {name: v2[name] for name in NAMES} == wanted


# --- v2 ---------------------------------------------------------------------------------------------------------------


def test_v2_a_holds_out_by_repetition_and_name_within_the_budget() -> None:
    new = {f"N/{i:02d}": 5 for i in range(4)} | {f"M/{i:02d}": 6 for i in range(20)} | {"A/4": 4, "A/10": 10}
    split = contrastive_split(new, [], set(), annotations=300, shares=USUAL, seed=0)
    held_out = [name for name in new if split[name] != "train"]
    # 45 annotations: the four with 5, then 25 // 6 of those with 6
    assert held_out == ["N/00", "N/01", "N/02", "N/03", "M/00", "M/01", "M/02", "M/03"]
    assert [split[name] for name in held_out] == ["test"] * 5 + ["val"] * 3


def test_v2_b_anchors_are_train() -> None:
    new = {f"N/{i:02d}": 5 for i in range(40)}
    anchors = {"Style/p03", "Style/p11", "N/00", "Other/unknown"}
    split = contrastive_split(new, NAMES, anchors, annotations=200, shares=USUAL, seed=2021)
    assert split["Style/p03"] == split["Style/p11"] == "train"
    assert split["N/00"] == "test"  # v2 annotated it: (a) decides
    assert split.keys() == {*new, *NAMES}


def test_v2_b_surplus_anchors_are_drawn_like_the_others() -> None:
    split = contrastive_split({}, NAMES, set(NAMES), annotations=0, shares=Shares(0.5, 0.2, 0.3), seed=0)
    assert {split[name] for name in NAMES[:15]} == {"train"}
    assert {split[name] for name in NAMES[15:]} == {"val", "test"}


def test_v2_c_others_equal_train_test_split() -> None:
    """v1 as a whole has the requested shares; expected values from train_test_split on the sorted names."""
    anchors = {f"Style/p{i:02d}" for i in (1, 4, 8, 12)}
    split = contrastive_split({}, NAMES, anchors, annotations=0, shares=USUAL, seed=2021)
    assert numbers(split, "val") == [13] and numbers(split, "test") == [6, 15, 18, 21]
    many = [f"S/{i}" for i in range(2000)]
    split = contrastive_split({}, many, set(many[:900]), annotations=0, shares=USUAL, seed=5)
    counts = Counter(split.values())
    assert all(abs(counts[part] - share * len(many)) <= 1 for part, share in USUAL._asdict().items())


def row(name: str, *, new: bool = False, repetition: int | None = None, anchor: str | None = None) -> Row:
    return Row("file.csv", 2, name, 0, "text", repetition, anchor, new)


def test_v2_paintings_of_v1_with_many_annotations_are_rest() -> None:
    rows = [row(name, repetition=41 if name == "Style/p00" else 40) for name in NAMES]
    rows += [row(f"N/{i}", new=True, repetition=5, anchor="Style/p01") for i in range(20) for _ in range(5)]
    rows += [row("Style/p00", new=True, repetition=4, anchor="Style/p01")]
    splits = split_rows(rows, shares=USUAL, seed=0, max_repetition=40)
    assert [s for r, s in zip(rows, splits, strict=True) if r.name == "Style/p00"] == ["rest", "train"]
    assert Counter(splits)["rest"] == 1
    by_name: dict[str, set[str]] = {}
    for r, split in zip(rows, splits, strict=True):
        if split != "rest":
            by_name.setdefault(r.name, set()).add(split)
    assert all(len(found) == 1 for found in by_name.values())


def test_missing_repetitions_are_counted() -> None:
    rows = [row("S/many") for _ in range(6)] + [row("S/few") for _ in range(5)] + [row("S/given", repetition=6)]
    splits = dict(zip([r.name for r in rows], split_rows(rows, shares=USUAL, seed=0, max_repetition=5), strict=True))
    assert splits["S/many"] == splits["S/given"] == "rest" and splits["S/few"] != "rest"


# --- parts ------------------------------------------------------------------------------------------------------------


def annotations(count: int, *, new: bool, split: str) -> list[Annotation]:
    version = "new" if new else "old"
    return [Annotation(f"{version}/{split}{i // 5}", i % 9, f"text {i:03d}", new, split) for i in range(count)]


@pytest.fixture
def both() -> list[Annotation]:
    """v2 with 80 annotations and v1 with 400, of which 60 are rest."""
    sizes = {True: {"train": 50, "val": 10, "test": 20}, False: {"train": 270, "val": 25, "test": 45, "rest": 60}}
    groups = (annotations(n, new=new, split=split) for new, of in sizes.items() for split, n in of.items())
    return sorted(annotation for group in groups for annotation in group)


def test_parts_of_v1() -> None:
    old = sorted(a for split in ("train", "val", "test", "rest") for a in annotations(10, new=False, split=split))
    found = parts(old, subset=None)
    assert [*found] == ["train", "val", "test", "rest"]
    assert all(found[split] == [a for a in old if a.split == split] for split in found)


def test_subsets_of_v2(both: list[Annotation]) -> None:
    new = [a for a in both if a.new]
    combined, full, alone = (parts(both, subset=subset) for subset in ("combined", "full", "new"))
    assert full["train"] == [a for a in both if a.split == "train"]
    assert alone["train"] == [a for a in new if a.split == "train"]
    assert set(alone["train"]) <= set(combined["train"]) <= set(full["train"])
    sampled = [a for a in combined["train"] if not a.new]
    assert 0 < len(sampled) < len(full["train"]) - len(alone["train"])
    assert Counter(sampled) <= Counter(full["train"])


def test_sample_of_v1_is_as_large_as_v2() -> None:
    """The sample is drawn from all splits, so its train part is smaller."""
    new = annotations(30, new=True, split="train")
    old = annotations(100, new=False, split="train")
    found = parts(sorted(new + old), subset="combined")
    assert Counter(a.new for a in found["train"]) == {True: 30, False: 30}
    few = parts(sorted(new + old[:12]), subset="combined")
    assert Counter(a.new for a in few["train"]) == {True: 30, False: 12}


def test_test_sets_of_v2(both: list[Annotation]) -> None:
    found = parts(both, subset="combined")
    names = {part: {a.name for a in chosen} for part, chosen in found.items()}
    assert names["test_old"] < names["test_ref"] and len(names["test_old"]) == len(names["test_ref"]) // 2
    assert set(found["test"]) == {*found["test_new"], *found["test_old"]}
    assert parts(both, subset="full")["test"] == found["test"]
    assert parts(both, subset="new")["test"] == found["test_new"]
    assert {a.split for a in found["test_40"]} == {"rest"}
    assert all(a <= b for chosen in found.values() for a, b in pairwise(chosen))
