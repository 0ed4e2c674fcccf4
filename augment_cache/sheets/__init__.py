"""Contact sheets: pictures in a grid, with words under each."""
