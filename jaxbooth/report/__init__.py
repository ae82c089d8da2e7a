"""`jaxbooth report`: runs as one HTML page that needs nothing else.

May import runs, data, metrics and what lies below them.
"""
