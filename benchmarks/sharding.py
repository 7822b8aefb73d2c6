"""What FSDP leaves each process to hold, measured on a small network; and what that makes for GPT-2 of every size.

    python -m benchmarks.sharding [--processes 1 2] [--cards 1 2 4 8]

Measured: a training step of every part, GPT-2 trained with the rest, in as many processes as asked for, on the CPU: the
bytes of weights, gradients and AdamW's states that a process has at the end of the backward pass. Computed, from the
shapes alone: what each card holds of the fully trained network of config.yaml with ViT-B/16 in fp32. Training: its
share of weights, gradients and states; all weights and gradients that belong to no unit; those of one block with the
next one's weights. Validation: the shares without gradients, and all weights. What a batch takes comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from multiprocessing import get_context

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.real_size import build, make_batch, make_optimizer
from model.captioner import Captioner
from model.losses import loss_sums
from trainer.provenance import provenance
from trainer.sharding import Sharding, share, units

SIZES = {  # width, layers, heads
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
SMALL = (256, 8, 4)


def network(width: int, layers: int, heads: int) -> Captioner:
    size = {"n_embd": width, "n_layer": layers, "n_head": heads}
    return build({"text": {"config": size, "trainable": True}})


def measured(processes: int) -> dict[str, int]:
    """Bytes in the process that holds the most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = get_context("spawn")
    answers = context.SimpleQueue()
    job = [context.Process(target=_held, args=(rank, processes, port, answers)) for rank in range(processes)]
    for process in job:
        process.start()
    found = [answers.get() for _ in job]
    for process in job:
        process.join()
    return {name: max(of_one[name] for of_one in found) for name in found[0]}


def _held(rank: int, processes: int, port: str, answers) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(processes)}
    torch.set_num_threads(1)
    captioner, accelerator = network(*SMALL), Accelerator(cpu=True)
    if processes > 1:
        Sharding(reshard=True).split(captioner, accelerator)
    parameters = [*captioner.parameters()]
    optimizer = make_optimizer(captioner, torch.device("cpu"))
    batch = make_batch(2, torch.device("cpu"), tokens=12)
    for step in range(2):
        sum(loss_sums(captioner.train()(batch), batch).values()).backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    states = [value for values in optimizer.state.values() for value in values.values() if value.ndim]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    of = {"weights": parameters, "gradients": gradients, "AdamW": states}
    answers.put({name: sum(share(tensor).nbytes for tensor in tensors) for name, tensors in of.items()})


def computed(captioner: Captioner, layers: int, cards: int) -> tuple[float, float]:
    """Bytes of a card in training and in validation, of a network with `layers` blocks like the one of `captioner`."""
    (block,) = captioner.language.blocks
    more = (layers - 1) * _bytes(block)
    weights, trained = (_bytes(captioner, trained=only) + more for only in (False, True))
    if cards == 1:
        return weights + 3 * trained, weights + 2 * trained
    inside = {id(parameter) for unit in units(captioner) for parameter in unit.parameters()}
    rest = sum(parameter.nbytes for parameter in captioner.parameters() if id(parameter) not in inside)
    shares = (weights + 3 * trained) / cards
    return shares + 2 * rest + 3 * _bytes(block), (weights + 2 * trained) / cards + weights


def _bytes(module: nn.Module, *, trained: bool = False) -> int:
    return sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad or not trained)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding", description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="measured with (1 2)")
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 2, 4, 8], help="computed for (1 2 4 8)")
    options = parser.parse_args()
    rows = {processes: measured(processes) for processes in options.processes}
    print(json.dumps({"options": vars(options), "measured": rows, **provenance()}))
    print("\n| processes | weights, MB | gradients, MB | AdamW's states, MB | together |\n|---|---|---|---|---|")
    for processes, row in rows.items():
        share = sum(row.values()) / sum(rows[options.processes[0]].values())
        cells = " | ".join(f"{value / 1e6:.1f}" for value in row.values())
        print(f"| {processes} | {cells} | {share:.3f} of {options.processes[0]}'s |")
    print(f"\n| GB a card: training / validation | weights, millions |{' | '.join(map(str, options.cards))} cards |")
    print("|---|---|" + "---|" * len(options.cards))
    for name, (width, layers, heads) in SIZES.items():
        captioner = network(width, 1, heads)
        weights = _bytes(captioner) + (layers - 1) * _bytes(captioner.language.blocks[0])
        cells = [computed(captioner, layers, cards) for cards in options.cards]
        shown = " | ".join(f"{training / 1e9:.1f} / {validation / 1e9:.1f}" for training, validation in cells)
        print(f"| {name} | {weights / 4e6:,.0f} | {shown} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
