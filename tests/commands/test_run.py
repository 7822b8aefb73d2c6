from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

import run
from common.config import check
from common.errors import UserError

HEAVY = ("torch", "transformers", "open_clip", "PIL", "matplotlib", "numpy")
# Runs run.py as a command, then prints the slow modules that it imported.
PROBE = f"""
import runpy, sys
sys.path.insert(0, {str(check.ROOT)!r})
try:
    runpy.run_path({str(check.ROOT / "run.py")!r}, run_name="__main__")
finally:
    ours = {{m for m in sys.modules if m.partition(".")[0] in ("data", "model", "trainer")}}
    print("HEAVY", sorted(ours - {{"data", "data.emotions"}} | ({set(HEAVY)!r} & sys.modules.keys())))
"""
LOADER = {"visual_dir": "???", "json_path": "???", "batch_size": 8, "num_workers": 1, "shuffle": True}
# Every key of perceiver captioner files, and no other key.
PERCEIVER = {
    "name": "theirs",
    "mode": "train",
    "pretrained_name": None,
    "resume_pretrained_state": False,
    "model": {
        "enable_mapper": True,
        "enable_resampler_xattn": True,
        "vision": {"pretrained_name": "openai/clip-vit-base-patch32", "trainable": False},
        "mapper": dict(mapper_type="mlp", depth=2, heads=4, dim_feedforward=64, mlp_dim=32, trainable=True),
        "resampler": dict(
            depth=3, dim_head=16, heads=2, num_latents=8, num_time_embeds=5, ff_mult=2, activation="relu"
        ),
        "text": {
            "pretrained_name": "gpt2",
            "trainable": False,
            "trainable_lm_head": False,
            "xattn": dict(dim_head=16, heads=2, num_latents=8, ff_mult=2, activation="relu", freq=2),
        },
        "optimizer": {
            "name": "adamw",
            "lr": 0.002,
            "betas": [0.8, 0.9],
            "weight_decay": "1e-3",
            "scheduler": dict(name="CosineAnnealing", warmup_steps=None, warmup_ratio=0.2, min_lr="1e-6"),
        },
    },
    "dataset": {
        "name": "coco",
        "sign_languages": ["en"],
        "tokenizer": "gpt2",
        "train_ds": LOADER,
        "validation_ds": LOADER,
        "test_ds": {"visual_dir": "???", "json_path": "???"},
    },
    "trainer": {
        "epochs": 40,
        "exp_dir": None,
        "exp_name": "${name}",
        "check_val_every_n_epoch": 1,
        "test": dict(decoding_strategy="beam", max_length=9, temperature=0.5, top_p=0.7, top_k=None, beam_width=2),
        "checkpoint_callback_params": {"monitor": "val_loss", "save_top_k": 1},
    },
    "hydra": {"run": {"dir": "${trainer.exp_dir}/${trainer.exp_name}"}, "job": {"chdir": True}},
}


def call(folder: Path, *arguments: str, probe: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    program = ["-c", PROBE] if probe else [str(check.ROOT / "run.py")]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_is_complete_and_imports_nothing_slow(tmp_path: Path) -> None:
    done = call(tmp_path, "--help", probe=True)
    assert done.returncode == 0, done.stderr
    for text in (
        "mode=train",
        "mode=test",
        "mode=predict",
        (check.ROOT / "config.yaml").read_text(encoding="utf-8"),
    ):
        assert text in done.stdout
    for name, comment in check.presets().items():
        assert f"{name:<14} {comment}" in done.stdout
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_wrong_keys_exit_with_2(tmp_path: Path) -> None:
    done = call(tmp_path, "trainer.epoch=3", "preset=dmo")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: unknown key 'trainer.epoch'; did you mean 'trainer.epochs'?"
    assert done.stderr.splitlines()[1].startswith("error: unknown preset 'dmo'; did you mean 'demo'?")


def test_wrong_values_exit_before_slow_imports_and_leave_no_files(tmp_path: Path) -> None:
    done = call(tmp_path, "mode=test", "trainer.precision=fp61", probe=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: trainer.precision must be one of auto | fp32 | fp16 | bf16, not 'fp61'; did you mean 'fp16'?",
        "error: mode=test needs pretrained_name=RUN: the run folder, checkpoint folder or run name to test",
    ]
    assert done.stdout.rstrip().endswith("HEAVY []")
    assert list(tmp_path.iterdir()) == []


def test_hydra_full_error_adds_the_traceback(tmp_path: Path) -> None:
    done = call(tmp_path, "seed=-1", HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: seed must be a whole number >= 0")


def test_perceiver_captioner_file_composes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(PERCEIVER))
    paths = [f"dataset.{part}_ds.{key}=x" for part in ("train", "validation") for key in ("visual_dir", "json_path")]
    own = ["trainer.exp_dir=out", "model.vad.fusion_dim=7"]
    done = call(
        tmp_path, f"--config-path={tmp_path}", "--config-name=config.yaml", "name=EXP", *paths, *own, "--cfg", "job"
    )
    assert done.returncode == 0, done.stderr
    cfg = OmegaConf.create(done.stdout)
    # the command line overrides the file, the file overrides config.yaml
    assert (cfg.name, cfg.trainer.exp_name, cfg.trainer.exp_dir) == ("EXP", "EXP", "out")
    assert (cfg.model.resampler.depth, cfg.trainer.epochs, cfg.dataset.name) == (3, 40, "coco")
    assert (cfg.model.vad.fusion_dim, cfg.dataset.max_length) == (7, check.defaults()["dataset.max_length"])
    check.check_config(cfg)
    assert (cfg.model.optimizer.weight_decay, cfg.model.optimizer.scheduler.name) == (0.001, "cosine")
    assert cfg.dataset.test_ds.json_path is None
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_precedence_of_config_preset_and_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {epochs: 40}\n")
    done = call(tmp_path, "-cp", ".", "-cn", "mine", "preset=artemis_v1", "--cfg", "job", "--package", "trainer")
    assert done.returncode == 0, done.stderr
    assert "epochs: 40" in done.stdout.splitlines()
    assert "  max_length: 30" in done.stdout.splitlines()


def test_multirun_names_its_runs(tmp_path: Path) -> None:
    done = call(tmp_path, "--multirun", "seed=1,2", "mode=test", "trainer.exp_dir=out")
    assert done.returncode == 2
    assert "needs pretrained_name" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "trainer.exp_name=${name}_${hydra:job.num}" in run.hydra_arguments(["-m", "seed=1,2"])
    assert "trainer.exp_name=x" in run.hydra_arguments(["-m", "seed=1,2", "trainer.exp_name=x"])


def test_options_before_and_after_keys() -> None:
    for flags in (["--cfg", "job"], ["--resolve", "-c", "job"], ["-p", "model"]):
        assert run.hydra_arguments(["seed=1", *flags, "name=x"])[-2:] == ["seed=1", "name=x"]


def test_flags_of_other_systems_are_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match=r"--ckpt_path is not an option: .*KEY=VALUE; docs/coming_from"):
        run.hydra_arguments(["--ckpt_path", "ckpts", "--nle_data_train_path", "train.json"])


def test_only_user_errors_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, run.exit_on_user_error():
        raise UserError("first\n  more of it\nsecond")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: first\n  more of it\nerror: second\n"
    with pytest.raises(ZeroDivisionError), run.exit_on_user_error():
        1 / 0  # noqa: B018


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setattr(run, "run", interrupted)
    with pytest.raises(SystemExit) as caught:
        run.main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
