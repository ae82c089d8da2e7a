"""One file for each page: its routes, and what its templates are filled with.

Imports what lies beside this folder in `ui`, which imports only the list of routes from here.
"""
