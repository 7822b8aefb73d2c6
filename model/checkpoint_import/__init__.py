"""Weights that other projects published, turned into runs of this one; nothing in their files is ever executed.

    python -m model.checkpoint_import sevlm FOLDER --out RUN
    python -m model.checkpoint_import perceiver FILE --out RUN

sevlm, perceiver: what the two kinds of checkpoint hold, and under which of our names. gpt2, towers, layout: the parts
and checks that they share. plain, omegaconf_nodes: how files are read.
"""
