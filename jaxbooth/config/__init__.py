"""The configuration of a run: its sections, YAML files, limits, rules, and what follows from it.

It imports names and checks from the rooms below (`weights`, `models`, `diffusion`, `storage`), and nothing that runs.
"""
