"""Pure functions from arrays to values: no files, no torch."""
