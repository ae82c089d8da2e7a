"""How numbers are written for people."""

PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))


def format_metric(amount: float, unit: str) -> str:
    """Returns an amount with a decimal prefix, such as `1.72 GB`."""
    prefix, scale = next((prefix, scale) for prefix, scale in PREFIXES if amount >= scale or scale == 1)
    return f"{amount / scale:.3g} {prefix}{unit}"
