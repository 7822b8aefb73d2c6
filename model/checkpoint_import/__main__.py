"""`python -m model.checkpoint_import`: see trainer/setup/import_checkpoint.py.

The command writes a run, so its code belongs to the trainer, which the model does not import: hence runpy.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("trainer.setup.import_checkpoint", run_name="__main__", alter_sys=True)
