"""Fuzzing of everything that reads a file: what makes the files, what must hold for each, and the engine."""
