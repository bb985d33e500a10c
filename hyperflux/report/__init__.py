"""What runs mean: tables and plots."""
