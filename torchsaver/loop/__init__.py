"""The training loop: steps that are saved when due and on a signal, TensorFlow's hook, and waiting for checkpoints."""
