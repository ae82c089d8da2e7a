"""How numbers are written for people."""

PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1))
TIMES = ((6000, 3600, "h"), (100, 60, "min"), (1, 1, "s"), (0, 1e-3, "ms"))  # from that many seconds on, a unit
GIB = 2**30


def format_metric(amount: float, unit: str) -> str:
    """Returns an amount with a decimal prefix, such as `1.72 GB`."""
    prefix, scale = next((prefix, scale) for prefix, scale in PREFIXES if amount >= scale or scale == 1)
    return f"{amount / scale:.3g} {prefix}{unit}"


def format_gib(size: float) -> str:
    """Returns bytes in GiB; small sizes in MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def format_significant(amount: float) -> str:
    """Returns a number with three digits, or all of a larger one's, and no exponent."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def format_duration(seconds: float) -> str:
    """Returns a time in the unit that reads best, such as `54.8 ms`, `1.6 min` or `2.7 h`."""
    scale, unit = next((scale, unit) for start, scale, unit in TIMES if seconds >= start)
    return f"{format_significant(seconds / scale)} {unit}"
