"""What is measured: features of images by CLIP and DINO, and the metrics of the DreamBooth paper on them.

May import base, data, weights, models and what lies below them.
"""
