"""Turn weights that other projects published into runs of this one; no code in their files is executed.

    python -m model.checkpoint_import sevlm FOLDER --out RUN
    python -m model.checkpoint_import perceiver FILE --out RUN

sevlm and perceiver read the two kinds of checkpoint, towers reads CLIP's vision transformer, omegaconf_nodes reads
pickled configurations. imported holds the result.
"""
