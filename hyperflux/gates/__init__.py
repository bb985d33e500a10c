"""What a gate may hold, and what a network costs with some of its gates open; shared by all backends."""
