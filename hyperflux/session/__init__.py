"""One network under pruning, on any backend: the session, its warnings, non-finite values, the process group."""
