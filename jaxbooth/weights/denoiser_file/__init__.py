"""Single files that hold a flow model's transformer alone, as ComfyUI's `diffusion_models` folder has them.

Imports what `weights` imports, and the files of `weights` that read and write tensors and diffusers folders.
"""
