"""Commands that are disturbed at random moments, and what they leave: nothing lost, nothing hung.

    python -m benchmarks.soak [--minutes 30] [--seed 0] [--folder FOLDER]

Each round takes a command (soak_commands.py) and a fault (see FAULTS) by chance, and then repeats the command, as its
user would, until it ends well. Its files must then be those of an undisturbed command, bit for bit; no process and no
temporary file may be left, and no traceback printed. Run by root, the folder is a tmpfs of its own, which at times is
filled up or read-only. A table counts the rounds; what failed is listed with its log, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from benchmarks.soak_commands import COMMANDS, Command, write_inputs
from common.config.check import ROOT

SIZE = "1g"  # of the tmpfs
MEMORY = 3 << 30  # bytes of address space beyond what the libraries map
# Exit statuses in docs/troubleshooting.md, and signals (a module that is not run.py leaves SIGTERM to the system).
ENDINGS = (0, 2, 75, 130, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGKILL)


@dataclass
class Soak:
    root: Path
    rng: random.Random
    mounted: bool
    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def start(self, command: Command, folder: Path, log: Path, limit: int | None = None) -> subprocess.Popen:
        words = [word.replace("{}", str(folder)).replace("{given}", str(self.root / "given")) for word in command.words]
        bound = partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit)) if limit else None
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                preexec_fn=bound, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def round(self, name: str, fault: str) -> None:
        """Disturb the command once, repeat it, and compare."""
        command, folder, log = COMMANDS[name], self.root / "work", self.root.parent / "round.log"
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)
        for part in command.inputs:
            shutil.copytree(self.root / "whole" / part, folder / part)
        for part in ("runs/run/test", "runs/run/predict"):
            shutil.rmtree(folder / part, ignore_errors=True)
        status, faults = self.disturb(command, folder, log, fault)
        for _ in range(3):
            if status == 0 or (command.once and (folder / command.once).exists()):
                status = 0
                break
            process = self.start(command, folder, log)
            faults += self.wait(process, command)
            status = process.returncode
        text = log.read_text(encoding="utf-8", errors="replace")
        faults += ["a traceback"] * ("Traceback (most recent call last)" in text)
        faults += [f"exit status {status} at last"] * (status != 0)
        faults += [f"{file} differs" for file, digest in digests(command, folder).items()
                   if digest != command.expected[file]]  # fmt: skip
        faults += [f"left: {path.name}" for path in folder.rglob(".*.tmp")]
        self.counts[name, fault] += 1
        if faults:
            kept = Path(tempfile.gettempdir()) / f"soak-failure-{len(self.failures) + 1}.log"
            shutil.copy(log, kept)
            self.failures.append(f"{name}, {fault}: {'; '.join(faults)} ({kept})")
            print(self.failures[-1], flush=True)

    def disturb(self, command: Command, folder: Path, log: Path, fault: str) -> tuple[int, list[str]]:
        """Run the command with the fault at a random moment; return its exit status, and what was wrong besides."""
        after, limit = self.rng.uniform(0, command.seconds), None
        if fault == "memory":
            limit = int(self.rng.uniform(0.2, 1) * MEMORY) + MEMORY
        process = self.start(command, folder, log, limit)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        if fault in SIGNALS:
            send(process, SIGNALS[fault])
        elif fault == "loader" and (children := psutil.Process(process.pid).children() if alive(process) else []):
            with contextlib.suppress(psutil.Error):
                self.rng.choice(children).kill()
        elif fault == "twice":
            second = self.start(command, folder, log)
            self.wait(second, command)
        if fault in ("full", "read-only"):
            with (full if fault == "full" else read_only)(self.root):
                time.sleep(min(5.0, command.seconds / 2))
        wrong = self.wait(process, command)
        return process.returncode, wrong

    def wait(self, process: subprocess.Popen, command: Command) -> list[str]:
        """Wait for the end; return what was wrong with it."""
        try:
            process.wait(120 + 10 * command.seconds)
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL)
            process.wait()
            return ["it hung"]
        end = time.monotonic() + 10  # loaders notice the death of their parent
        while (left := members(process.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        found = [f"processes left: {len(left)}"] * bool(left)
        return found + [f"exit status {process.returncode}"] * (process.returncode not in ENDINGS)


SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FAULTS = (*SIGNALS, "SIGKILL", "SIGKILL", "loader", "memory", "twice", "full", "read-only")  # kills are likelier


def alive(process: subprocess.Popen) -> bool:
    return process.poll() is None


def send(process: subprocess.Popen, number: int) -> None:
    if alive(process):
        process.send_signal(number)


def members(session: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def full(root: Path) -> Iterator[None]:
    ballast = root / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    yield
    ballast.unlink()


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Remount read-only; while a file is open for writing this is refused, and nothing happens."""
    change = partial(subprocess.run, check=False, stderr=subprocess.DEVNULL)
    change(["mount", "-o", "remount,ro", str(root)])
    try:
        yield
    finally:
        change(["mount", "-o", "remount,rw", str(root)])


def digests(command: Command, folder: Path) -> dict[str, str]:
    """Return a digest of the content of each of the command's files or folders."""
    found = {}
    for pattern in command.files:
        digest = hashlib.sha256()
        for path in sorted(folder.glob(pattern)):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    content = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
                    digest.update(str(file.relative_to(folder)).encode() + content)
        found[pattern] = digest.hexdigest()
    return found


@contextlib.contextmanager
def workplace(folder: Path | None) -> Iterator[tuple[Path, bool]]:
    """Yield a folder that is a tmpfs if that can be mounted."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as made:
        root = Path(made) / "soak"
        root.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(root)]
        mounted = os.geteuid() == 0 and subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
        try:
            yield root, mounted
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(root)], check=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of commands, faults and moments (%(default)s)")
    parser.add_argument("--folder", type=Path, help="place of the tmpfs (the system's folder of temporary files)")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    with workplace(options.folder) as (root, mounted):
        write_inputs(root / "given")
        soak = Soak(root, random.Random(options.seed), mounted)
        if not undisturbed(soak):
            return 1
        faults = [fault for fault in FAULTS if mounted or fault not in ("full", "read-only")]
        names, weights = zip(*((name, command.weight) for name, command in COMMANDS.items()), strict=True)
        try:
            while time.monotonic() < end:
                soak.round(*soak.rng.choices(names, weights), soak.rng.choice(faults))
        finally:
            report(soak)
    return int(bool(soak.failures))


def undisturbed(soak: Soak) -> bool:
    """Run every command in an order in which each finds its inputs; keep times, digests and files. False: one failed.

    In the folder of the rounds: predictions depend on the paths of the pictures.
    """
    folder, log = soak.root / "work", soak.root.parent / "whole.log"
    for name, command in COMMANDS.items():
        started = time.monotonic()
        process = soak.start(command, folder, log)
        if (faults := soak.wait(process, command)) or process.returncode:
            print(f"{name}, undisturbed: {faults}\n{log.read_text(encoding='utf-8')[-2000:]}", file=sys.stderr)
            return False
        command.seconds, command.expected = time.monotonic() - started, digests(command, folder)
        print(f"{name}: {command.seconds:.0f} s undisturbed", flush=True)
    folder.rename(soak.root / "whole")
    return True


def report(soak: Soak) -> None:
    kinds = list(dict.fromkeys(FAULTS))
    print(f"\n| command | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
    for name in COMMANDS:
        print(f"| {name} | {' | '.join(str(soak.counts[name, kind]) for kind in kinds)} |")
    print(f"\n{soak.counts.total()} rounds, {len(soak.failures)} failures")
    print(json.dumps({"failures": soak.failures}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
