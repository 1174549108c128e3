"""lsexp: a laboratory for label smoothing."""
