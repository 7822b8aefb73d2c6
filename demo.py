"""The page of a trained run: `python demo.py` for the demo's, `python demo.py RUN KEY=VALUE …` for another.

The same as `python run.py mode=serve pretrained_name=RUN KEY=VALUE …`; see docs/serve.md.
"""

import sys

from common.cli import exit_at_signals, run_program

if __name__ == "__main__":
    exit_at_signals()
    import run

    words = sys.argv[1:]
    named = words[:1] if words and "=" not in words[0] and not words[0].startswith("-") else []
    sys.argv[1:] = ["mode=serve", f"pretrained_name={(named or ['demo'])[0]}", *words[len(named) :]]
    run_program(run.main)
