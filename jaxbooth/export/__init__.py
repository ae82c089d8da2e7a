"""What a trained model becomes for other tools: one file for each format, its verification, its model card, its upload.

Imports `base`, `data` and what stands below them; knows of no run's folder.
"""
