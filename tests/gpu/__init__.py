"""What runs only where there is a GPU."""
