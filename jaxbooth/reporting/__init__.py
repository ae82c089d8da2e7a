"""`jaxbooth report`: runs as one HTML page that needs nothing else."""

from jaxbooth.reporting.command import make_report

__all__ = ["make_report"]
