"""Reading what somebody hands in, writing whole files, and the names in both."""
