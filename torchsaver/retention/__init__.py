"""Which checkpoints stay: pure decisions; what they mean for the disk is done by rotation."""
