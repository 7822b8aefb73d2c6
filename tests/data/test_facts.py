"""Files of what each image shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.demo import write_demo
from data.readers.facts import read_facts

PHRASES = {"subject": {"boat": ["boat", "sailing boat"], "cat": ["cat"]}, "place": {"left": ["on the left"]}}


def write(folder: Path, content: object) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_values_are_one_text_or_a_list_and_other_keys_are_ignored(tmp_path):
    images = {"1": {"subject": "boat", "boxes": [[0, 0, 1, 1]]}, "2": {"subject": ["boat", "cat"], "place": "middle"}}
    found = read_facts(write(tmp_path, {"phrases": PHRASES, "images": images}))
    assert found.phrases["subject"] == {"boat": ("boat", "sailing boat"), "cat": ("cat",)}
    assert found.images == {"1": {"subject": ("boat",)}, "2": {"subject": ("boat", "cat"), "place": ("middle",)}}


def test_facts_of_the_demo_can_be_read(tmp_path):
    write_demo(tmp_path / "demo", num_train=9, num_val=9, num_test=9)
    found = read_facts(tmp_path / "demo" / "facts.json")
    assert len(found.images) == 27 and {"subject", "palette", "brushwork", "composition"} <= found.phrases.keys()
    assert all(record["subject"][0] in found.phrases["subject"] for record in found.images.values())


FAULTS = {
    "list": ([], "must be an object, not an empty list"),
    "phrases": ({"images": {}}, "the key 'phrases' is missing"),
    "images": ({"phrases": PHRASES}, "the key 'images' is missing"),
    "kinds": ({"phrases": {}, "images": {}}, "'phrases' is empty"),
    "values": ({"phrases": {"subject": ["boat"]}, "images": {}}, "'phrases': 'subject': must be an object"),
    "text": ({"phrases": {"subject": {"boat": "boat"}}, "images": {}}, "'subject': 'boat' must be a list, not text"),
    "empty": ({"phrases": {"subject": {"boat": [" "]}}, "images": {}}, "'subject': 'boat' has an empty phrase"),
    "twice": (
        {"phrases": {"subject": {"boat": ["Boat"], "ship": ["boat"]}}, "images": {}},
        "'subject': 'ship' and 'boat' share the phrase 'boat'",
    ),
    "image": ({"phrases": PHRASES, "images": {"7": "boat"}}, "image '7': must be an object, not text"),
    "value": ({"phrases": PHRASES, "images": {"7": {"subject": 3}}}, "image '7': 'subject' must be text, not a number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_name_file_and_key(tmp_path, name):
    content, message = FAULTS[name]
    with pytest.raises(UserError) as caught:
        read_facts(write(tmp_path, content))
    assert message in str(caught.value) and "facts.json" in str(caught.value)
