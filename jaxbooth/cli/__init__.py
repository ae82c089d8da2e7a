"""The command line: one module for each command, with its flags and one call. It may import everything; nothing imports
it.
"""
