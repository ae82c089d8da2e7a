"""Copies a folder, which may be in a bucket, to this host; photos are read from local folders.

python scripts/launch/fetch.py gs://bucket/photos photos
"""

import sys

from etils import epath


def fetch(source: epath.Path, target: epath.Path) -> int:
    """Copies every file below `source` to `target`, over what is there, and returns their number."""
    count = 0
    for path in source.iterdir():
        if path.is_dir():
            count += fetch(path, target / path.name)
            continue
        target.mkdir(parents=True, exist_ok=True)
        path.copy(target / path.name, overwrite=True)
        count += 1
    return count


def main(argv: list[str]) -> int:
    """Copies the folder in `argv` and returns the exit code."""
    if len(argv) != 2:
        print("fetch.py takes a folder to read and a folder to write.", file=sys.stderr)
        return 2
    source = epath.Path(argv[0])
    count = fetch(source, epath.Path(argv[1])) if source.is_dir() else 0
    if not count:
        print(f"{source} holds no files; check the name and this host's access to it.", file=sys.stderr)
        return 2
    print(f"copied {count} file(s) from {source} to {argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
