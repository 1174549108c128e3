"""`lsexp report`: all studies that have been swept, on one page, as HTML and as Markdown.

content.py   finished runs to sections: figures, tables, claims, what was run
pages.py     sections to the two texts, by the templates beside it
command.py   the command
"""
