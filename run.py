"""EmoScribe: predict which emotion a painting evokes, and explain why.

    python run.py mode=train                                      train on the built-in demo, into runs/demo
    python run.py mode=test pretrained_name=demo                  score on the held-out part, write the report
    python run.py mode=predict pretrained_name=demo image=PATH    emotion and explanation of an image or a folder
    python run.py mode=serve pretrained_name=demo                 the same on a page and over HTTP

KEY=VALUE sets any key of config.yaml (printed below); preset=NAME selects another preset:
{presets}

Your own YAML file overrides config.yaml, and the command line overrides both. Its key `preset` selects a preset:

    python run.py --config-path=FOLDER --config-name=FILE.yaml KEY=VALUE ...
    python run.py --cfg job ...                                   print the configuration and exit
    python run.py --multirun seed=1,2,3 ...                       one run per value: NAME_0, NAME_1, NAME_2
    python run.py --multirun hydra/sweeper=optuna ...             search for good values: docs/training.md
    torchrun --nproc-per-node 4 run.py ...                        four processes, one per GPU: same results, faster
    HYDRA_FULL_ERROR=1 python run.py ...                          print the traceback of an error

Exit status: 2 after a usage, configuration or data error, 130 after an interrupt. On SIGTERM, SIGINT or SIGUSR1,
training finishes its step, writes a checkpoint and exits with 75; trainer.resume=auto then continues it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

if __name__ == "__main__":  # first: the other imports take seconds
    from common.cli import exit_at_signals

    exit_at_signals()

try:
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed: run make venv, or pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)

from common.cli import report, run_program
from common.config.check import ROOT, check_config, check_overrides, presets
from common.config.files import load_file
from common.errors import UserError
from common.faults import explain_errors
from common.hub import offline_if_unreachable
from common.ranks import mute_other_ranks, rank, should_report

trained: list[tuple[float, bool, str]] = []  # of --multirun: the monitored value, whether less is better, the run


def usage() -> str:
    lines = "\n".join(f"    {name:<14} {comment}" for name, comment in presets().items())
    return f"{__doc__.format(presets=lines)}\n{(ROOT / 'config.yaml').read_text(encoding='utf-8')}"


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print the message of a UserError and exit with status 2."""
    try:
        yield
    except UserError as error:
        if hasattr(signal, "SIGCHLD"):  # torch's handler would raise at the death of a loader process, also a later one
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if should_report(error):
            report(error)
        sys.exit(2)


def hydra_options(arguments: list[str]) -> argparse.Namespace:
    """Split the command line into overrides and Hydra's documented options, whose values Hydra itself checks."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-i", "--info", nargs="?")
    for option in ("-c --cfg", "-p --package", "-cp --config-path", "-cn --config-name", "-cd --config-dir"):
        parser.add_argument(*option.split())
    for flag in ("-m --multirun", "-r --run", "--resolve", "--version", "--hydra-help"):
        parser.add_argument(*flag.split(), action="store_true")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise UserError(
            f"{unknown[0]} is not an option: keys are set as KEY=VALUE; docs/coming_from_other_systems.md lists the "
            "keys that replace the flags of other systems"
        )
    return options


def hydra_arguments(arguments: list[str]) -> list[str]:
    """Return the arguments for Hydra: its own options unchanged, checked overrides, the user's file as group `user`."""
    if {"-sc", "--shell-completion"} & {*arguments}:
        return arguments
    options = hydra_options(arguments)
    overrides = check_overrides(options.overrides, multirun=options.multirun)
    keys = {text.partition("=")[0] for text in overrides}
    if options.config_path is not None or options.config_name is not None:
        content, preset = load_file(options.config_path, options.config_name)
        if content is not None:
            ConfigStore.instance().store(group="user", name="file", node=content, package="_global_")
            overrides.append("user=file")
        if "preset" not in keys:
            overrides.append(f"preset={preset}")
    if options.multirun and "trainer.exp_name" not in keys:
        overrides.append("trainer.exp_name=${name}_${hydra:job.num}")
    flags = [text for text in arguments if text not in options.overrides]
    return [*flags, f"--config-path={ROOT}", "--config-name=config", *overrides]  # the last of two options counts


@hydra.main(version_base="1.3", config_path=str(ROOT), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """Return the monitored value of a training's best checkpoint, which Optuna's sweeper minimizes or maximizes."""
    with exit_on_user_error(), explain_errors():
        check_config(cfg)
        offline_if_unreachable()
        from trainer import commands  # imported here: torch is slow to load, so validate the config first
        from trainer.runtime import processes

        with processes.explain_lost_peer(), mute_other_ranks(), explain_errors():
            try:
                value = getattr(commands, cfg.mode)(cfg)
            except UserError as error:
                if not trained or "n_trials" not in HydraConfig.get().sweeper:
                    raise
                report(error)  # such as NaN at a high learning rate: Optuna goes on with the next trial
                return None
        if value is not None:
            monitor = cfg.trainer.checkpoint_callback_params.monitor
            trained.append((value, monitor.endswith("loss"), f"{cfg.trainer.exp_name}, {monitor} {value:.4f}"))
        return value


def report_best() -> None:
    """Name the best of several trainings of this process."""
    if len(trained) > 1 and rank() == 0:
        best = min(trained, key=lambda one: one[0] if one[1] else -one[0])
        print(f"the best of {len(trained)} runs: {best[2]}", file=sys.stderr)


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage())
        return
    try:
        with exit_on_user_error():
            sys.argv[1:] = hydra_arguments(sys.argv[1:])
        run()
        report_best()
    except KeyboardInterrupt:
        if rank() == 0:
            print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_program(main)
