"""Tables of benchmarks.generation: times beside the encoder's, what bounds them, and what was set out for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

TOKENS, BEAMS = 25, 5


def bounds(weights: int, rates: dict[str, float], precision: str, rows: int, images: int) -> dict[str, float]:
    """Seconds an image that writing 24 more tokens cannot fall below: by arithmetic, and by bringing the weights in."""
    steps = TOKENS - 1
    arithmetic = 2 * weights * rows * steps / rates[f"{precision} product"] / 1e9 / images
    memory = weights * (4 if precision == "fp32" else 2) * steps / rates["memory"] / 1e9 / images
    return {"arithmetic": arithmetic, "memory": memory}


def report(found: dict, options: argparse.Namespace) -> None:
    rates = ", ".join(f"{name} {rate:.1f}" for name, rate in found["rates"].items())
    print(f"\n{found['device']}, {torch.get_num_threads()} threads, {options.clock} clock; 1e9 a second: {rates}")
    print(f"texts as the published way writes them: {found.get('same texts')}\n")
    for batch, works in found["batches"].items():
        encoder = works["encoder as open_clip has it, fp32"]["s/image"]
        print(f"| batch {batch} | s per image | × encoder |\n|---|---|---|")
        for name, work in works.items():
            print(f"| {name} | {work['s/image']:.4f} | {work['s/image'] / encoder:.2f} |")
        for precision in options.precision:
            for name, rows in (("greedy", batch), ("beam 5", batch * BEAMS)):
                low = bounds(found["weights"], found["rates"], precision, rows, batch)
                values = ", ".join(f"{key} {value:.4f}" for key, value in low.items())
                print(f"bound of decoding, {name}, {precision}: {values} s per image")
        print()
    print("| goal | wanted | found |\n|---|---|---|")
    for goal, wanted, value in goals(found["batches"], options.published_at):
        print(f"| {goal} | {wanted} | {value:.2f} |")


def goals(batches: dict[int, dict], published: int) -> Iterator[tuple[str, str, float]]:
    """What was set out for, as far as it was measured."""

    def ratio(batch: int, above: str, below: str, *, of: int | None = None) -> float | None:
        try:
            return batches[batch][above]["s/image"] / batches[of or batch][below]["s/image"]
        except KeyError:
            return None

    small, ends, encoder = "GPT-2 small, fp32", "end to end, greedy, ", "encoder as open_clip has it, fp32"
    rows = []
    for batch, most in ((16, 1.75), (64, 1.5)):
        rows.append((f"end to end / encoder, batch {batch}", f"≤ {most}", ratio(batch, f"{ends}{small}", encoder)))
        rows.append(
            (f"the same, of our encoder, batch {batch}", "", ratio(batch, f"{ends}{small}", f"encoder, {small}"))
        )
    for batch in batches:
        faster = ratio(batch, f"{ends}{small}", f"{ends}GPT-2 small, bf16")
        rows.append((f"bf16 / fp32, end to end, batch {batch}", "≥ 2.5", faster))
    at, greedy, beam = published, f"decode, greedy, {small}", f"decode, beam 5, {small}"
    rows += [
        ("SEVLM's rate, end to end", "≥ 2.5", ratio(at, "published SEVLM, end to end", f"{ends}{small}")),
        ("the same with distilgpt2", "", ratio(at, "published SEVLM, end to end", f"{ends}distilgpt2, fp32")),
        (
            "SEVLM's rate, decode, distilgpt2",
            "",
            ratio(at, "published SEVLM, decode", "decode, greedy, distilgpt2, fp32"),
        ),
        ("greedy rate, the same model", "≥ 5", ratio(at, "published perceiver, decode, greedy", greedy)),
        ("beam 5 rate, the same model", "≥ 8", ratio(at, "published perceiver, decode, beam 5", beam)),
        (f"beam 5 / greedy, decode, batch {at}", "≤ 3", ratio(at, beam, greedy)),
    ]
    return ((name, wanted, value) for name, wanted, value in rows if value is not None)
