"""What a run needs of a device, before one is rented: memory, FLOPs and time, estimated from shapes or compiled by XLA.

It may import training, metrics, data, base and what is below them; runs and the command line import it.
"""
