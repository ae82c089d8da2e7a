"""The processes of one run: which one this is, how they start, stop and fail together, and arrays that they share.

Imports nothing of jaxbooth but `errors` and `console`.
"""
