"""Tune a vision-language model on conversations, and test and predict with it."""
