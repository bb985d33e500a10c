"""Reports on runs, comparisons and pruning laws: pages, tables and plots."""
