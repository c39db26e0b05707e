"""Many submission folders sorted without reading each: folders.py finds them, row.py says what is to be said of one.

Code is read as text (script.py) and held against the table of techniques.py; nothing of a folder is run. No torch here.
"""
