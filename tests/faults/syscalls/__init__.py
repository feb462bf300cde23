"""Faults at every system call of a save or a restore, in real processes: see ../README.md."""
