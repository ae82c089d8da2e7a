"""The tables of docs/from-diffusers.md, from the data that the command line answers with (assets/peer_flags.yaml).

python scripts/peer_tables.py            writes them
python scripts/peer_tables.py --check    exits with 1 if they are not what the data say
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from jaxbooth.config.suggestions import peer_flags
from jaxbooth.storage.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "from-diffusers.md"
MARKED = re.compile(r"(<!-- begin ([\w-]+)[^>]*-->\n).*?(<!-- end -->)", re.S)


def table(peer: str, rows: list[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table; the scripts that have a flag are a column where the data name them."""
    columns = [peer, *(["in"] if "scripts" in rows[0] else []), "here"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [", ".join(row["names"]), *([row["scripts"]] if "scripts" in row else []), row["here"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tables(peer: str) -> str:
    """Returns all tables of a peer; several have headings."""
    sections = peer_flags()[peer]
    parts = []
    for title, rows in sections.items():
        heading = [f"### {title}", ""] if len(sections) > 1 else []
        parts.append("\n".join([*heading, *table(peer, rows)]))
    return "\n" + "\n\n".join(parts) + "\n\n"


def page() -> str:
    """Returns the page with its tables made anew."""
    return MARKED.sub(lambda match: match[1] + tables(match[2]) + match[3], PAGE.read_text())


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    if not parser.parse_args().check:
        write_text(PAGE, page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the data say; run python scripts/peer_tables.py.")


if __name__ == "__main__":
    main()
