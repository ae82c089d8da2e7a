"""`jaxbooth evaluate`: measures what a run has learned and what it has forgotten, beside its base model.

May import metrics, runs, pipeline and what lies below them.
"""
