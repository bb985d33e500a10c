"""Hyperflux for any PyTorch module and any optimizer, on CPU and GPU."""
