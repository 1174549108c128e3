"""The waist of the project: what names a run, the files of its folder, who trains it now.

identity.py  what decides a result, and the name made of it
store.py     the files of a run folder; attempts and publishing
claims.py    one writer: claims on a run, taken over when their owner stands still
"""
