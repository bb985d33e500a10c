"""The `hyperflux` command, installed as the package hyperflux_cli: one file a command, thin."""
