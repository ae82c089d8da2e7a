"""The frozen base model and its services: components, tokenizers, text encoders, VAE, sampling, what training changes.

Imports `config` and what lies below it; knows of no data set, training or run.
"""
