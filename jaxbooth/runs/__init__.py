"""A run from a configuration to an export: its folder, inputs, loop, checkpoints, validation, logs.

Imports `training`, `export`, `metrics`, `plan` and what lies below them; nothing below knows of runs.
"""
