"""TensorFlow's checkpoint files, read and written without TensorFlow; tables and messages are bounds-checked here."""
