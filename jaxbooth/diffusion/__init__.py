"""The noise schedule, the noise, the loss and the samplers: pure functions of arrays, close to the papers' equations.

Imports `errors`, `storage` for reading the scheduler's file, and `params`; knows of no network, mesh or configuration.
"""
