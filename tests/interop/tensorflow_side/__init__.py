"""TensorFlow's half of the tests: a program that has TensorFlow and nothing of ours, and does what it is told."""
