from __future__ import annotations

import re

import pytest

from common.config import check
from common.config.rules import NEEDED_BY, NEEDS, NOT_NEEDED, RULES, Rule, one_of
from data.emotions import EMOTIONS
from docs.generate_configuration import comments


def test_rules_name_existing_keys_only() -> None:
    assert set(RULES) <= set(check.defaults())
    assert {key for needs in NEEDS.values() for key in needs} <= set(check.defaults())
    assert {key for keys in NOT_NEEDED.values() for key in keys} <= set(check.defaults())
    assert set(NOT_NEEDED) <= set(RULES["dataset.name"].words)
    assert set(NEEDED_BY) <= {*check.defaults(), *check.groups()}
    assert set(NEEDS) == set(RULES["mode"].words)


def test_every_key_without_a_default_has_a_rule() -> None:
    assert [key for key, value in check.defaults().items() if value is None and key not in RULES] == []


def test_defaults_follow_their_rules() -> None:
    defaults = check.defaults()
    assert {key: rule.read(defaults[key]) for key, rule in check.rules().items()} == defaults


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if (rule.item or rule).words])
def test_comment_of_a_key_lists_its_choices(key: str) -> None:
    rule = RULES[key].item or RULES[key]
    comment = comments()[key]
    assert [word for word in rule.words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", comment)] == []


def test_comment_of_the_defaults_list_names_every_preset() -> None:
    text = (check.ROOT / "config.yaml").read_text(encoding="utf-8")
    comment = re.search(r"- preset: demo *# (.*(?:\n +# .*)*)", text)
    assert comment is not None
    assert sorted(re.findall(r"\w+", comment[1])) == sorted(check.presets())


@pytest.mark.parametrize(
    ("rule", "value", "result"),
    [
        (Rule(float, bounds="> 0"), "1e-3", 1e-3),
        (Rule(float), 1, 1.0),
        (Rule(int, bounds=">= 1"), "16", 16),
        (Rule(int), 4.0, 4),
        (Rule(int, words=("auto",)), "AUTO", "auto"),
        (Rule(bool), "True", True),
        (Rule(), 2024, "2024"),
        (Rule(null=True), "", None),
        (one_of("linear", "cosine"), "CosineAnnealing", "cosine"),
        (one_of(*EMOTIONS), "Something_Else", "something else"),
        (Rule(list, item=one_of("en", "de")), "EN, de", ["en", "de"]),
        (Rule(list, item=Rule(float), length=2), ["0.9", 0.98], [0.9, 0.98]),
    ],
)
def test_values_are_normalized(rule: Rule, value: object, result: object) -> None:
    read = rule.read(value)
    assert read == result
    assert type(read) is type(result)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Rule(float, bounds="> 0"), 0),
        (Rule(float, bounds="> 0, <= 1"), 1.01),
        (Rule(float), "nan"),
        (Rule(float), float("inf")),
        (Rule(float), True),
        (Rule(float), None),
        (Rule(float), [1.0]),
        (Rule(int), 1.5),
        (Rule(int), 10**400),
        (Rule(int, words=("auto",)), "always"),
        (Rule(bool), 1),
        (Rule(bool), "yes"),
        (Rule(), ""),
        (Rule(), {"a": 1}),
        (one_of("fp16", "bf16"), 16),
        (Rule(list, item=one_of("en")), []),
        (Rule(list, item=one_of("en")), ["xx"]),
        (Rule(list, item=Rule(float), length=2), [0.9]),
        (Rule(dict, null=True), 3),
    ],
)
def test_invalid_values_are_rejected(rule: Rule, value: object) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        rule.read(value)
