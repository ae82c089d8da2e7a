"""Images on disk and what training makes of them: captions, masks, crops, buckets, class images, the latent cache.

Imports `base` and what lies below it; knows of no train step and no run.
"""
