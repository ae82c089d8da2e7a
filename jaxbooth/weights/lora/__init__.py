"""LoRA files in the layouts of diffusers, ComfyUI and other trainers: their names, their alphas, read and written.

Imports what `weights` imports, the files of `weights` that read and write tensors, and the names of single files.
"""
