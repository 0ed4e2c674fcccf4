"""Models written down as YAML: `[repeat, module, args]` lines, checked strictly and built from well-known blocks."""
