"""Java programs end, in time and with one line on what failed, whatever they and the caller do."""

from __future__ import annotations

import threading
import time

import pytest

from tests.helpers.fake_java import left_running, put_java
from trainer.metrics import java
from trainer.metrics.java import Java, JavaError, JavaProcess, find_java, run_java


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes a Java whose only program is this script."""

    def make(script: str) -> Java:
        folder = put_java(tmp_path / "bin", monkeypatch, tokenizer=script)
        return Java(str(folder / "java"), "1.8.0")

    return make


def run(found: Java, **options) -> bytes:
    return run_java(found, ["PTBTokenizer"], **{"seconds": 30.0, **options})


def test_a_program_is_given_its_input_and_gives_its_output(program):
    data = b"\xc3\xa9" * 300_000  # more than a pipe holds
    assert run(program("exec /bin/cat"), stdin=data) == data


def test_stderr_of_any_length_neither_blocks_nor_mixes_with_the_output(program):
    flood = "i=0; while [ $i -lt 20000 ]; do echo 'a line of twenty-six letters' >&2; i=$((i + 1)); done; echo done"
    assert run(program(flood)) == b"done\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"ended early \(status 3\)"),
        ("kill -9 $$", r"ended early \(status -9\)"),
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
def test_a_failure_is_one_line_with_javas_own_reason(program, script, message):
    with pytest.raises(JavaError, match=message) as caught:
        run(program(script))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script", ["exec {0}/sleep 60", "{0}/sleep 60", "{0}/sleep 60 & exit 1"])
def test_what_hangs_is_ended_with_all_that_it_started(program, tmp_path, script):
    found = program(script.format(tmp_path / "bin"))
    started = time.monotonic()
    with pytest.raises(JavaError, match=r"did not finish within 0.5 s"):
        run(found, seconds=0.5)
    assert time.monotonic() - started < 20
    assert left_running(tmp_path / "bin") == []


def test_a_java_that_cannot_be_started_is_told(tmp_path):
    with pytest.raises(JavaError, match="cannot be started"):
        run_java(Java(str(tmp_path / "none"), ""), [], seconds=1.0)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_the_process_ends_with_the_block_also_by_an_exception(program, tmp_path, fault):
    found = program("echo started; " + str(tmp_path / "bin" / "sleep") + " 60")
    with pytest.raises(fault), JavaProcess(found, ["PTBTokenizer"], seconds=60.0) as process:
        assert process.line() == "started"
        assert left_running(tmp_path / "bin")
        raise fault
    assert left_running(tmp_path / "bin") == []


def test_a_thread_that_waits_for_an_answer_is_let_go(program, tmp_path):
    found = program(f"{tmp_path}/bin/sleep 60")
    said = []

    def wait():
        try:
            process.line()
        except JavaError as error:
            said.append(str(error))

    with JavaProcess(found, ["PTBTokenizer"], seconds=0.3) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        process.write(b"x" * 1_000_000)  # nobody reads it
        waiting.join(timeout=20)
    assert said == ["Java did not finish within 0.3 s"]


def test_the_version_is_read_and_a_broken_java_is_none(tmp_path, monkeypatch):
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


def test_where_jdk4pys_java_does_not_run_the_one_on_path_is_taken(tmp_path, monkeypatch):
    bundled = put_java(tmp_path / "bundled", monkeypatch, version="exit 1")
    put_java(tmp_path / "system", monkeypatch)
    monkeypatch.setattr(java, "java_bin", lambda: bundled)
    assert find_java() == Java(str(tmp_path / "system" / "java"), "1.8.0")
