"""torchsaver beside its peers and beside what the machine can do: see README.md."""
