"""Files and numbers from outside: read safely, checked, written atomically."""
