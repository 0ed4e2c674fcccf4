"""From a path to the sources that it holds."""
