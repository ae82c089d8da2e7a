"""The command line: every command parses its flags and calls the library.

It may import everything; nothing imports it.
"""
