"""Many subjects in one program, each with a run folder of its own.

The slots of `jaxbooth.training.slots` are filled from a manifest, saved together, and emptied when a subject is done.
"""
