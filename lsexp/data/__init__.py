"""Image data: where they come from, their one order, their splits, their batches.

sources.py      named sets and files -> arrays as found
imagefolder.py  a folder of pictures -> arrays of one size
canonical.py    content digest, canonical order, imported copies
splits.py       train, val and test by index
batches.py      images on the device, batches and their augmentation
"""

from lsexp.data.canonical import Dataset
from lsexp.data.sources import SOURCES, load
from lsexp.data.splits import Splits, draw_splits

__all__ = ["SOURCES", "Dataset", "Splits", "draw_splits", "load"]
