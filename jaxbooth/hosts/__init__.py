"""The processes of one run: where each one is, how they start together, stop together and fail together."""
