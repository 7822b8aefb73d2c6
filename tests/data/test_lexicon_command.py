"""`python -m data.lexicon` describes a lexicon file and its coverage of texts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from common.config.check import check_config, check_overrides
from common.errors import UserError
from data.lexicon.__main__ import main
from data.vad.lexicon import Lexicon
from tests.helpers.tiny import ROOT, arguments, write_lexicon, write_splits, write_tokenizer
from trainer.setup.autos import resolve_auto
from trainer.setup.parts import build_parts

ROWS = (
    "Word,Valence,Arousal,Dominance\nCalm,9,1,5\nserene sky,8,2,5\ncafé,7,5,5\nbank (river),5,5,5\nbank (money),4,6,5\n"
)
TEXTS = ["a Calm bank, calmer banks", "café Noir cafe\u0301", "the storm and the calm"]


@pytest.fixture
def lexicon(tmp_path: Path) -> Path:
    path = tmp_path / "lexicon.csv"
    path.write_text(ROWS, encoding="utf-8")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert not (captured.err if status == 0 else captured.out)
    return captured.err if status else captured.out


def test_description_of_a_file(lexicon: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, lexicon)
    assert "layout   word, valence, arousal, dominance, from columns 1, 2, 3, 4" in out
    assert "scale    1..9, mapped to -1..1" in out
    assert "words    3, and 1 terms of several words" in out
    assert "range    valence -0.125 to +1.000" in out
    assert "calm: valence +1.000  arousal -1.000  dominance +0.000" in out
    assert "café: valence +0.500" in out
    assert "missing" not in out and max(map(len, out.splitlines())) <= 120


def test_scale_and_columns(lexicon: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, lexicon, "--scale", "1..9", "--columns", "word,3,2,Dominance")
    assert "from columns 1, 3, 2, 4" in out and "calm: valence -1.000  arousal +1.000" in out
    assert run(capsys, lexicon, "--scale", "0..1", status=2).startswith("error: ")


def test_example_words_show_whether_the_columns_are_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("abacus", "calm", "happy", "king", "murder", "terrify", "zebra")
    rows = [f"{word},{i},{i / 2},{i / 4}" for i, word in enumerate(words, start=1)]
    (tmp_path / "l.csv").write_text("\n".join(["word,valence,arousal,dominance", *rows]), encoding="utf-8")
    out = run(capsys, tmp_path / "l.csv", "--scale", "0..100")
    found = [line.split()[1] for line in out.splitlines() if line.startswith("example")]
    assert found == ["happy:", "murder:", "calm:", "terrified:", "king:"]


@pytest.mark.parametrize("options", [["--scale", "-1..1"], ["--scale=-1..1"]])
def test_scale_that_looks_like_an_option(lexicon: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    lexicon.write_text("calm,0.5,0,1\n", encoding="utf-8")
    assert "scale    -1..1" in run(capsys, lexicon, *options)
    assert "scale    -1..1" in run(capsys, *options, lexicon)


def test_configuration_reaches_the_reader(tmp_path: Path) -> None:
    """dataset.vad_scale and dataset.vad_columns apply to the lexicon of a training run."""
    path = tmp_path / "ones.csv"
    path.write_text("n,calm,1,1,1\nn,sad,1,1,1\n", encoding="utf-8")
    keys = write_splits(tmp_path) | {"dataset.vad_lexicon": path}
    options = {"dataset.vad_scale": "-1..1", "dataset.vad_columns": "[2, 3, 4, 5]"}

    def lexicon(keys: dict) -> Lexicon:
        with initialize_config_dir(version_base="1.3", config_dir=str(ROOT)):
            config = compose("config", overrides=check_overrides(arguments(keys)))
        check_config(config)
        resolve_auto(config, has_emotions=True)
        return build_parts(config).aligner.lexicon

    assert lexicon(keys | options).table == {"calm": (1.0, 1.0, 1.0), "sad": (1.0, 1.0, 1.0)}
    for key in options:
        with pytest.raises(UserError, match=key):
            lexicon({k: v for k, v in (keys | options).items() if k != key})


def test_coverage_of_texts(lexicon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    out = run(capsys, lexicon, "--texts", texts)
    assert f"texts    3 of {texts}: 13 words, 10 different ones" in out  # both spellings of café are one word
    assert "found    38.5% of the words themselves" in out  # calm, bank, café, café, calm
    assert "         15.4% by their lemma" in out  # calmer, banks
    assert "missing  46.2%, most frequent: the 2, a 1, noir 1, storm 1, and 1" in out
    assert "aligned" not in out


def test_coverage_by_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "train.json"
    record = {"image_name": "a", "emotions": ["awe"], "explanations": ["a serene sky", "the storm makes me afraid"]}
    texts.write_text(json.dumps({"1": record}), encoding="utf-8")
    lexicon, tokenizer = write_lexicon(tmp_path / "lexicon.csv"), write_tokenizer(tmp_path / "bpe")
    out = run(capsys, lexicon, "--texts", texts, texts, "--tokenizer", tokenizer)
    assert "texts    4 of" in out and "words found are split into tokens" in out
    assert "aligned  100.00% have their own values" in out
    assert re.search(r"by piece \d+\.\d+% would have them", out)


@pytest.mark.parametrize("options", [["--texts", "none.json"], ["--texts", "lexicon.csv"], ["--scale", "percent"]])
def test_errors_are_one_line(lexicon: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    paths = [str(lexicon.parent / option) if "." in option else option for option in options]
    assert main([str(lexicon), *paths]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_tokenizer_requires_texts(lexicon: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(lexicon), "--tokenizer", "gpt2"])
    assert "--texts" in capsys.readouterr().err


def test_exit_status_of_the_command(lexicon: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data.lexicon", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)

    assert run(lexicon).returncode == 0
    failed = run(lexicon.with_name("lost.csv"))
    assert failed.returncode == 2 and "lost.csv" in failed.stderr and "Traceback" not in failed.stderr


def test_real_paintings(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [shared_data / "paintings" / f"artEmisX_{split}.json" for split in ("train", "val", "test")]
    out = run(
        capsys, shared_data / "vad" / "GlasgowNorms.csv", "--texts", *texts, "--tokenizer", shared_data / "gpt2_bpe"
    )
    assert "Glasgow norms" in out and "aligned  100.00%" in out
    by_piece = float(re.search(r"by piece (\d+\.\d+)%", out)[1])
    assert 90 < by_piece < 98
