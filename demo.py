"""The page of a trained run: `python demo.py` for the demo's, `python demo.py RUN KEY=VALUE …` for another.

The same as `python run.py mode=serve pretrained_name=RUN KEY=VALUE …`; see docs/serve.md.
"""

import sys

import emoscribe

if __name__ == "__main__":
    words = sys.argv[1:]
    named = words[:1] if words and "=" not in words[0] and not words[0].startswith("-") else []
    sys.argv[1:] = ["serve", f"pretrained_name={(named or ['demo'])[0]}", *words[len(named) :]]
    emoscribe.main()
