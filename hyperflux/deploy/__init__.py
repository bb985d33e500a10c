"""The pay-off: a pruned network as a smaller, faster, plain one, and the files that people deploy."""
