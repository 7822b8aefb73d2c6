"""METEOR 1.5 (Denkowski and Lavie, 2014), run as pycocoevalcap's Java program.

The program reads a line `SCORE ||| reference ||| … ||| caption` per image and prints a line of counts; a line
`EVAL ||| counts ||| …` makes it print the score of each image and of the whole set.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.progress import progress
from trainer.metrics.java import Java, JavaProcess

SECONDS = 180.0  # to load the word lists from a slow disk
SECONDS_PER_IMAGE = 0.2
MEMORY = "-Xmx2G"  # pycocoevalcap's limit; half a gigabyte is enough in practice
SHOWN_FROM = 1000  # images from which a progress bar is shown

Texts = dict[str, list[str]]  # image id -> its texts
Scores = tuple[float, list[float], dict[str, list[float]]]  # of all images, of each, and its counts by image id


@contextlib.contextmanager
def meteor_in_background(
    java: Java | None, systems: Sequence[Texts], targets: Texts
) -> Iterator[Callable[[], list[Scores]]]:
    """Run METEOR in the background, and yield a function that waits for the scores. Java ends with the block.

    Args:
        systems: the hypotheses of each; targets: of the same images in the same order.

    Raises:
        JavaError: at the start or from that function: Java cannot be started, exits early, prints anything but numbers,
            or takes longer than SECONDS plus SECONDS_PER_IMAGE per image.
    """

    def scores() -> list[Scores]:
        names = [f"METEOR, text {i} of {len(systems)}" if systems[1:] else "METEOR" for i in range(1, len(systems) + 1)]
        return [meteor_scores(process, texts, targets, name) for texts, name in zip(systems, names, strict=True)]

    images = len(targets) * len(systems)
    with ThreadPoolExecutor(1) as thread, meteor_process(java, images) as process:  # the process ends first
        yield thread.submit(scores).result


def meteor_process(java: Java | None, images: int) -> JavaProcess:
    """Start METEOR for at most `images` images; loading takes some seconds."""
    import pycocoevalcap.meteor.meteor as installed

    jar = Path(installed.__file__).with_name(installed.METEOR_JAR)
    arguments = [MEMORY, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    return JavaProcess(java, arguments, seconds=SECONDS + SECONDS_PER_IMAGE * images)


def meteor_scores(process: JavaProcess, hypotheses: Texts, targets: Texts, name: str = "METEOR") -> Scores:
    """Return the scores; a process can score several sets one after another. `name` is that of the progress bar."""
    lines = "".join(_score_line(hypotheses[image][0], texts) for image, texts in targets.items())
    threading.Thread(target=process.write, args=(lines.encode(),), daemon=True).start()
    answers, counts = [], {}
    with progress(len(targets), name, unit="image", enabled=len(targets) >= SHOWN_FROM) as bar:
        for image in targets:
            answers.append(process.line())
            counts[image] = _numbers(answers[-1], process)
            bar.update()
    process.write(" ||| ".join(("EVAL", *answers)).encode() + b"\n")
    each = [_numbers(process.line(), process)[0] for _ in targets]
    return _numbers(process.line(), process)[0], each, counts


def _score_line(hypothesis: str, references: list[str]) -> str:
    parts = [text.replace("|", " ") for text in (*references, hypothesis)]
    return " ||| ".join(("SCORE", *parts)) + "\n"


def _numbers(line: str, process: JavaProcess) -> list[float]:
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise process.error(f"printed {line[:40]!r} instead of numbers")
    return numbers
