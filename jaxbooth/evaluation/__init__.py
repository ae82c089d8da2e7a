"""Measuring what a run has learned, and what it has forgotten."""
