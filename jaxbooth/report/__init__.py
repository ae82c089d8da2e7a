"""`jaxbooth report`: runs as one HTML page that needs nothing else."""

from jaxbooth.report.report import make_report

__all__ = ["make_report"]
