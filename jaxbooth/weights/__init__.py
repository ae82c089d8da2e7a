"""A model's weights and configurations, in and out: diffusers folders, single files, LoRA and embedding files, the Hub.

Imports `models` and what stands below it; knows of no run and of no run's configuration.
"""
