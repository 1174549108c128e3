"""lsexp: a laboratory for label smoothing.

From Python: `load_runs` gives what has been trained as a DataFrame, `load_outputs` a run's
logits and labels as arrays. Everything else is the command `lsexp`.
"""

from lsexp.runs.catalog import load_outputs, load_runs

__all__ = ["load_outputs", "load_runs"]
