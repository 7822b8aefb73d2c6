"""What a caption costs beside the encoder, and beside the published systems' ways of writing.

    python -m benchmarks.generation [--batch 1 16 64] [--repeats 3] [--precision fp32 bf16] [--out FILE.json]

ViT-B/16 with GPT-2 small and with distilgpt2, every part on, random weights, which cost what trained ones cost; <eos>
is out of reach, so that all captions have 25 tokens. The published systems are re-built in benchmarks/published.py. A
round takes every work once; times are medians over the rounds after one to warm up, so that all works have the same
machine. `--clock cpu --threads 1` counts processor seconds, for a machine that others use too. Where there is a GPU,
the same is measured there as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks.generation_report import BEAMS, TOKENS, report
from benchmarks.published import perceiver_beam, perceiver_greedy, sevlm_greedy
from benchmarks.real_size import NO_WORDS, VOCABULARY
from model.build import SpecialTokens, build_captioner
from model.captioner import Captioner
from model.generation import Decoding, generate
from model.packed import pack, ready_to_write
from model.scoring import emotion_log_probs
from settings import ROOT
from trainer.checkpoint import provenance

PROMPT, SAID = [VOCABULARY - 1, 262, 9942, 318, 25030, 780], 1
LABELS = [[30184], [25030], [2695, 434], [14067], [8993], [16234], [3252], [25303], [1223, 2073]]  # the nine, by GPT-2
PUBLISHED_BATCH = 8  # pictures that SEVLM's loop gets at once; its time per picture does not depend on it
GREEDY, BEAM = Decoding(max_length=TOKENS), Decoding(strategy="beam", beam_width=BEAMS, max_length=TOKENS)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(layers: int = 12, *, architecture: str = "emoscribe") -> Captioner:
    """layers: 12 of GPT-2 small, 6 of distilgpt2."""
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "config.yaml").model)
    config["architecture"] = architecture
    config["vision"] |= {"pretrained_name": None, "architecture": "ViT-B-16-quickgelu"}
    config["text"] |= {"pretrained_name": None, "config": {"n_layer": layers}, "segments": True}
    config["vad"]["enabled"] = config["contrastive"]["enabled"] = True
    special = None
    if architecture == "sevlm":
        config["vision"]["tokens"] = "patches"
        config["vad"] |= {"fusion": "concat", "encoder": "bidirectional"}
        special = SpecialTokens(VOCABULARY, (VOCABULARY + 2, VOCABULARY + 3))
    torch.manual_seed(0)
    vocabulary = VOCABULARY + (4 if special else 0)
    captioner = build_captioner(config, vocab_size=vocabulary, eos_id=VOCABULARY - 1, special=special).eval()
    for name, parameter in captioner.named_parameters():
        if "alpha_" in name:  # or the pictures would have no say
            nn.init.constant_(parameter, 0.5)
    return captioner


class Ours:
    """A network as test and predict use it."""

    def __init__(self, captioner: Captioner, dtype: torch.dtype, device: torch.device) -> None:
        self.captioner = captioner.to(device)
        ready_to_write(self.captioner, bf16=dtype == torch.bfloat16)

    def look(self, frames: Tensor):
        return self.captioner.look(frames, torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device))

    def write(self, visual, decoding: Decoding) -> list[list[int]]:
        count = len(visual.prefix)
        written = generate(
            self.captioner, visual, [PROMPT] * count, explanation_tokens=[SAID] * count, eos_id=-1, vad=NO_WORDS,
            decoding=decoding,
        )  # fmt: skip
        return [text.tokens for text in written]

    def end_to_end(self, frames: Tensor, decoding: Decoding) -> list[list[int]]:
        """As predict does: the nine emotions scored, then the reason."""
        visual = self.look(frames)
        emotion_log_probs(self.captioner, visual, prompt=PROMPT[:4], labels=LABELS, vad=NO_WORDS)
        return self.write(visual, decoding)


@dataclass
class Work:
    name: str
    images: int
    run: Callable[[], object]
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of one image."""
        return statistics.median(self.times) / self.images


class Clock:
    def __init__(self, kind: str, device: torch.device) -> None:
        self.now = time.process_time if kind == "cpu" else time.perf_counter
        self.device = device

    def __call__(self, work: Callable[[], object]) -> float:
        self._wait()
        start = self.now()
        work()
        self._wait()
        return self.now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@torch.no_grad()
def measured(works: list[Work], rounds: int, clock: Clock) -> None:
    for number in range(rounds + 1):
        for work in works:
            elapsed = clock(work.run)
            if number:
                work.times.append(elapsed)
            print(f"\r{number}/{rounds} {work.name:<60}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 70, end="\r", file=sys.stderr)


def own_works(ours: dict[str, Ours], plain: Captioner, frames: Tensor, options: argparse.Namespace) -> Iterator[Work]:
    """plain: the captioner as it is built, whose encoder is open_clip's own."""
    batch = len(frames)
    yield Work("encoder as open_clip has it, fp32", batch, lambda: plain.vision(frames))
    for name, network in ours.items():
        if "distilgpt2" not in name:
            yield Work(f"encoder, {name}", batch, lambda n=network: n.captioner.vision(frames))
        visual = network.look(frames)
        yield Work(f"end to end, greedy, {name}", batch, lambda n=network: n.end_to_end(frames, GREEDY))
        yield Work(f"decode, greedy, {name}", batch, lambda n=network, v=visual: n.write(v, GREEDY))
        if batch <= options.beam_batch and "distilgpt2" not in name:
            yield Work(f"decode, beam 5, {name}", batch, lambda n=network, v=visual: n.write(v, BEAM))
            yield Work(f"end to end, beam 5, {name}", batch, lambda n=network: n.end_to_end(frames, BEAM))


def published_works(plain: Captioner, sevlm: Captioner, frames: Tensor) -> Iterator[Work]:
    """One picture at a time where the published system does so."""
    first, few = frames[:1], frames[:PUBLISHED_BATCH]
    mask = torch.ones(1, 1, dtype=torch.bool, device=frames.device)
    words = [f" w{i}" for i in range(VOCABULARY + 4)]
    lexicon = {word.strip(): (0.1, 0.2, 0.3) for word in words[::3]}

    def bridge(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return plain.mapper(tokens, mask), plain.resampler(tokens, mask)

    def loop(patches: Tensor) -> list[list[int]]:
        return sevlm_greedy(
            sevlm, patches, PROMPT[:4], because=780, steps=TOKENS, pieces=words, lexicon=lexicon
        )  # fmt: skip

    with torch.no_grad():
        seen, patches = bridge(plain.vision(first)), sevlm.vision(few)[:, 0]
    settings = {"said": SAID, "steps": TOKENS}
    yield Work("published SEVLM, end to end", len(few), lambda: loop(sevlm.vision(few)[:, 0]))
    yield Work("published SEVLM, decode", len(few), lambda: loop(patches))
    yield Work("published perceiver, decode, greedy", 1, lambda: perceiver_greedy(plain, *seen, PROMPT, **settings))
    yield Work(
        "published perceiver, decode, beam 5", 1, lambda: perceiver_beam(plain, *seen, PROMPT, width=BEAMS, **settings)
    )


@torch.no_grad()
def same_texts(ours: Ours, plain: Captioner, frames: Tensor) -> dict[str, bool]:
    """Whether the first picture gets the text that the published way gives it, by the same weights."""
    mask = torch.ones(1, 1, dtype=torch.bool, device=frames.device)
    tokens = plain.vision(frames[:1])
    seen, visual = (plain.mapper(tokens, mask), plain.resampler(tokens, mask)), ours.look(frames[:1])
    settings = {"said": SAID, "steps": TOKENS}
    return {
        "greedy": ours.write(visual, GREEDY)[0] == perceiver_greedy(plain, *seen, PROMPT, **settings),
        "beam 5": ours.write(visual, BEAM)[0] == perceiver_beam(plain, *seen, PROMPT, width=BEAMS, **settings),
    }


@torch.no_grad()
def machine(dtypes: list[str], clock: Clock) -> dict[str, float]:
    """Best rates seen: products of the encoder's shapes in 1e9 operations a second, reading memory in 1e9 bytes."""
    rates = {}
    for name in dtypes:
        x = torch.randn(3152, 768, device=clock.device).to(DTYPES[name])
        layer = nn.Sequential(nn.Linear(768, 3072, device=clock.device)).to(DTYPES[name])
        pack(layer)
        rates[f"{name} product"] = 2 * 3152 * 768 * 3072 / min(clock(partial(layer, x)) for _ in range(8)) / 1e9
    big = torch.ones(1 << 26, device=clock.device)
    rates["memory"] = big.numel() * 4 / min(clock(big.sum) for _ in range(8)) / 1e9
    return rates


def decoder_weights(captioner: Captioner) -> int:
    """Weights that every written token is multiplied by."""
    blocks = sum(p.numel() for name, p in captioner.language.lm.transformer.h.named_parameters() if "to_kv" not in name)
    return blocks + captioner.language.lm.lm_head.weight.numel()


def run(options: argparse.Namespace, device: torch.device) -> dict:
    clock = Clock(options.clock if device.type == "cpu" else "wall", device)
    rates = machine(options.precision, clock)
    plain, sevlm = build().to(device), build(6, architecture="sevlm").to(device)
    sevlm.vision.visual = plain.vision.visual  # one tower, to save memory
    ours = {f"GPT-2 small, {p}": Ours(build(), DTYPES[p], device) for p in options.precision}
    if "fp32" in options.precision:
        smaller = build(6)
        smaller.vision = ours["GPT-2 small, fp32"].captioner.vision
        ours["distilgpt2, fp32"] = Ours(smaller, torch.float32, device)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(max(*options.batch, PUBLISHED_BATCH), 1, 3, 224, 224, generator=generator).to(device)
    found: dict = {"device": device.type, "rates": rates, "weights": decoder_weights(plain), "batches": {}}
    if "fp32" in options.precision:
        found["same texts"] = same_texts(ours["GPT-2 small, fp32"], plain, frames)
    for batch in options.batch:
        with torch.no_grad():
            works = list(own_works(ours, plain, frames[:batch], options))
            if batch == options.published_at:
                works += published_works(plain, sevlm, frames)
        measured(works, options.repeats, clock)
        found["batches"][batch] = {work.name: {"s/image": work.seconds, "all": work.times} for work in works}
        del works
        gc.collect()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__.splitlines()[0])
    has_bf16 = torch.backends.cpu.get_cpu_capability() == "AVX512" and "bf16" in cpu_flags()
    precisions = ["fp32", "bf16"] if has_bf16 or torch.cuda.is_available() else ["fp32"]
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (%(default)s)")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=precisions, help="(%(default)s)")
    parser.add_argument("--beam-batch", type=int, default=16, help="largest batch for beam search (%(default)s)")
    parser.add_argument(
        "--published-at", type=int, default=16, help="batch beside which they run; 0 = no (%(default)s)"
    )
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="(%(default)s)")
    parser.add_argument("--threads", type=int, help="of torch; as many as there are cores where it is left out")
    parser.add_argument("--out", type=Path, help="file for the JSON; else it is printed")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [run(options, torch.device(name)) for name in devices]
    text = json.dumps({"options": {**vars(options), "out": None}, "found": found, **provenance()})
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    for one in found:
        report(one, options)
    return 0


def cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
