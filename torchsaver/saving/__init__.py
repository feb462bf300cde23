"""Writing a saver's checkpoints: gathered, copied if need be, and carried out, here or in the background."""
