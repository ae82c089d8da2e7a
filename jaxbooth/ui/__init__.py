"""The page to work in: a local web server that prepares, queues, watches and compares runs, all read from run folders.

Imports everything below it, and nothing of `cli`: commands are started as processes of their own.
"""
