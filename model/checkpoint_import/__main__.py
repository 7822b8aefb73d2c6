"""`python -m model.checkpoint_import`: see trainer/setup/import_checkpoint.py.

The command writes a run folder, so its code is the trainer's. It is looked up at run time because the model does not import
the trainer.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("trainer.setup.import_checkpoint", run_name="__main__", alter_sys=True)
