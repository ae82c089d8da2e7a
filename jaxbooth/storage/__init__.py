"""Files and folders: reading them with checks, writing them whole, paths, object stores, disk space, locks.

It imports nothing of jaxbooth but `errors` and `console`.
"""
