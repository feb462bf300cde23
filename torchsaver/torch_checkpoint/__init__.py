"""A file of torch.save as a checkpoint: its tensors by key, its objects' states, its optimizers by parameter names."""
