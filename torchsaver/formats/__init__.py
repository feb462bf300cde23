"""HOW a checkpoint is written: bytes to values and back; never a user's object, never a change to the disk."""
