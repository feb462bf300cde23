"""The mapping language: how a value is laid out otherwise, and under which name a checkpoint has it."""
