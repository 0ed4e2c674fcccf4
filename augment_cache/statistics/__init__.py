"""What a cache holds, counted from its Arrow columns, and the counts as tables and as a picture."""
