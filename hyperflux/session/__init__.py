"""What one network under pruning and whoever drives it share: warnings, what is not finite, processes."""
