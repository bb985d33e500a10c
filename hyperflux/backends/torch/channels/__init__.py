"""Gates of channels: which channels of a network go together, what reads them, and their presence parameters."""
