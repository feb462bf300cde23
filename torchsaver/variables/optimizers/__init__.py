"""Optimizers and schedulers: what they keep, by the names of parameters, given back to whatever order there is now."""
