"""One pruning session, the same on every backend, and what it shares: warnings, non-finite checks, processes."""
