"""The prompts and answers of conversations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from data.prepare.instructions.class_words import class_words, parts_of_speech
from data.prepare.instructions.clauses import FUNCTION
from data.prepare.instructions.observation import without_class

CATEGORICAL, REASONING, OBSERVATION = KINDS = ("categorical", "reasoning", "observation")

SYSTEM = "You look at pictures and tell which feelings they stir in people, and what in the picture does it."
# {labels}: all of them, in the order of the data; {label}: that of the annotation. A label may be any word or phrase
# (something else, positive), so it is quoted and never part of the sentence's grammar.
PROMPTS = {
    CATEGORICAL: (
        "Which of these categories fits the emotion that this picture evokes: {labels}? Answer with the category only.",
        "Sort this picture by the feeling it gives. The categories are {labels}. Reply with one of them.",
        "What would somebody feel who stands before this picture? Choose among {labels}, and write only your choice.",
        "Pick one category for the emotional effect of this picture ({labels}) and give nothing but its name.",
        "Categories of emotion: {labels}. Which one does this picture call up? Name it, without a reason.",
    ),
    REASONING: (
        'Somebody described the feeling that this picture gives them as "{label}". Why?',
        'The emotion that this picture evokes was put under "{label}". What leads to it?',
        'Asked for their feeling about this picture, a viewer chose "{label}". Give their reason.',
        'One person looked at this picture and answered "{label}". What made them feel so?',
        'Explain how this picture comes to be felt as "{label}".',
    ),
    OBSERVATION: (
        "Tell what you notice in this picture and what it does to you.",
        "What stands out in this picture, and how does it strike you?",
        "Describe what is to be seen here and the impression it leaves.",
        "Say in your own words what this picture shows or brings to mind.",
        "What do you see here, and what do you make of it?",
    ),
}


def turn(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def question(kind: str, id: str, *, seed: int, label: str | None, labels: Sequence[str]) -> str:
    """Return one of the prompts of a kind; the same seed and id give the same one."""
    digest = blake2b(f"{seed}\0{id}\0{kind}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    prompts = PROMPTS[kind]
    return prompts[int.from_bytes(digest) % len(prompts)].format(label=label, labels=listed(labels))


def listed(labels: Sequence[str]) -> str:
    """Return the labels as a choice: `awe, fear or sadness`."""
    *others, last = labels
    return f"{', '.join(others)} or {last}" if others else last


def because(text: str, label: str | None) -> str:
    """Return a reason as a clause that begins with because.

    `I feel sad because it rains` loses its main clause, which only repeats the label.

    Args:
        text: as `observation.tidy` returns it.
    """
    if match := re.fullmatch(r"([^.!?;]*?)\bbecause (.+)", text, flags=re.IGNORECASE):
        before, after = match[1].strip(), match[2]
        if _only_names_the_feeling(before, label):
            text = after
    return f"because {_in_a_sentence(text)}"


def _only_names_the_feeling(text: str, label: str | None) -> bool:
    if re.fullmatch(r"(?:(?:(?:it|this|that)(?:['’]s| is)?|mainly|just|maybe|probably)\s*)*", text, re.IGNORECASE):
        return True
    return label is not None and class_words(label).named_in(text) is not None and without_class(text, label) is None


def _in_a_sentence(text: str) -> str:
    """Return `text` with a lower-case first letter, unless it begins with a name or I."""
    first, second, *_ = [*text.split(" ", 2), ""]
    word = re.sub(r"[^\w].*", "", first)
    if not word or word == "I" or word != word.capitalize():
        return text
    if word.lower() in FUNCTION or (parts_of_speech(word) and not second[:1].isupper()):
        return text[0].lower() + text[1:]
    return text
