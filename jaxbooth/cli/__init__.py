"""The command line: one module for each command, with its flags and one call.

Imports every other room; nothing imports it.
"""
