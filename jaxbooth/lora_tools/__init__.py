"""Work on LoRA files without training: files merged into one, resized, or extracted from two models.

Imports what `base` imports; nothing here computes on a device.
"""
