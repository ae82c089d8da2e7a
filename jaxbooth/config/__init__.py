"""The configuration of a run: its sections, YAML files, limits, rules, and what follows from it.

Imports names and checks from `weights`, `models`, `diffusion` and what lies below them; knows of nothing that runs.
"""
