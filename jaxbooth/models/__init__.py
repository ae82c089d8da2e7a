"""The networks as Flax modules, whose attributes have the names of the diffusers and transformers state dicts.

Imports `params`, `sharding`, `prng`, `distributed` and what lies below; knows of no files of weights, no configurations
of a run, and no losses.
"""
