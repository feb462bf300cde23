"""Filling a saver's variables from an open checkpoint: worked out, checked, and only then carried out."""
