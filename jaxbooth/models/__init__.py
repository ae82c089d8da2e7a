"""The networks as Flax modules, whose attributes have the names of the diffusers and transformers state dicts.

Imports `params`, `sharding`, `prng` and `storage`; knows of no files of weights, configurations of a run, or losses.
"""
