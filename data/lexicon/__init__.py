"""The command `python -m data.lexicon`: how a lexicon file is read, and how much of given texts it covers."""
