"""Stages teacher, student and gate: what they train, measure and write, and how test and predict use it."""
