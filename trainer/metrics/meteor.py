"""METEOR 1.5 (Denkowski and Lavie, 2014), by the program that pycocoevalcap brings, in a Java process.

The program reads a line `SCORE ||| reference ||| … ||| caption` for each image and prints a line of counts; a line
`EVAL ||| counts ||| …` makes it print the score of each image and of all.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.progress import progress
from trainer.metrics.java import Java, JavaProcess

SECONDS = 180.0  # to load its word lists on a slow disk
SECONDS_PER_IMAGE = 0.2
MEMORY = "-Xmx2G"  # pycocoevalcap's own limit; half a gigabyte is what it comes to use
SHOWN_FROM = 1000  # images; fewer are scored in moments

Texts = dict[str, list[str]]  # image id -> its texts
Scores = tuple[float, list[float]]  # of all images, of each
Counts = dict[str, list[float]]  # image id -> the numbers that answer its SCORE line


@contextlib.contextmanager
def meteor_beside(
    java: Java, hypotheses: Texts, targets: Texts, counts: Counts | None = None
) -> Iterator[Callable[[], Scores]]:
    """Run METEOR beside the block, and yield a function that waits for the scores and fills `counts`.

    The images of both are the same and in the same order. Java ends with the block.

    Raises:
        JavaError: at the start or by that function: Java cannot be started, ends early, writes anything but numbers, or
            takes longer than SECONDS and SECONDS_PER_IMAGE for each image.
    """
    with ThreadPoolExecutor(1) as thread, meteor_process(java, len(targets)) as process:  # this ends first
        yield thread.submit(meteor_scores, process, hypotheses, targets, counts).result


def meteor_process(java: Java, images: int) -> JavaProcess:
    """Start METEOR for at most so many images; it loads word lists for some seconds."""
    import pycocoevalcap.meteor.meteor as installed

    jar = Path(installed.__file__).with_name(installed.METEOR_JAR)
    arguments = [MEMORY, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    return JavaProcess(java, arguments, seconds=SECONDS + SECONDS_PER_IMAGE * images)


def meteor_scores(process: JavaProcess, hypotheses: Texts, targets: Texts, counts: Counts | None = None) -> Scores:
    """Return the score of all images and of each; a process can score several sets one after another.

    Args:
        counts: is filled with the counts of each image, for trainer.metrics.caption_counts.
    """
    lines = "".join(_score_line(hypotheses[image][0], texts) for image, texts in targets.items())
    threading.Thread(target=process.write, args=(lines.encode(),), daemon=True).start()
    answers = []
    with progress(len(targets), "METEOR", unit="image", enabled=len(targets) >= SHOWN_FROM) as bar:
        for image in targets:
            answers.append(process.line())
            numbers = _numbers(answers[-1], process)
            if counts is not None:
                counts[image] = numbers
            bar.update()
    process.write(" ||| ".join(("EVAL", *answers)).encode() + b"\n")
    each = [_numbers(process.line(), process)[0] for _ in targets]
    return _numbers(process.line(), process)[0], each


def _score_line(hypothesis: str, references: list[str]) -> str:
    parts = [text.replace("|", " ") for text in (*references, hypothesis)]
    return " ||| ".join(("SCORE", *parts)) + "\n"


def _numbers(line: str, process: JavaProcess) -> list[float]:
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise process.error(f"printed {line[:40]!r} where numbers belong")
    return numbers
