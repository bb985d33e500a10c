"""Kernels for a training step on tensors: the plain one, a faster one that must agree with it, and the choice."""
