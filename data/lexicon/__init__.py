"""The command `python -m data.lexicon`: describe a lexicon file and measure its coverage of texts."""
