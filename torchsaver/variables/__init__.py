"""WHAT is saved: the user's objects as {key: slot}; never a file."""
