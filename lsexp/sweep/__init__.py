"""`lsexp sweep STUDY` and `lsexp plot STUDY`: train what a study lacks; its tables and figure.

Knows no study by name.

command.py   the two commands: what is to do, training, in what order
asked.py     words to the runs that they mean
work.py      what is left of them, what it will cost; training it
manifest.py  what a sweep leaves, so that a plot without words draws the newest one
naming.py    the folders of figures, by the words that were typed
show.py      finished runs to tables, findings and figures
"""
