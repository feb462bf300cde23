"""WHERE a checkpoint is: a directory on disk; never a user's object."""
