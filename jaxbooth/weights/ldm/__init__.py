"""Single-file checkpoints with the names of CompVis LDM and Stability SGM: recognised, read and written.

Imports what `weights` imports, and the files of `weights` that read and write tensors and diffusers folders.
"""
