"""Make a pruned network small and fast: compaction, CSR layers, exported files, and what they cost and gain."""
