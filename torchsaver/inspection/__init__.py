"""LOOKING at checkpoints: open readers and directories in, report objects and text out; nothing is changed."""
