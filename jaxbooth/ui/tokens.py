"""Secrets of a root: the token that lets browsers in, and seals that tell the page's own jobs from all others."""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

TOKEN_BYTES = 24
TOKEN = "token"  # among the server's own files


def read_token(path: Path) -> str:
    """Returns the token in a file that only its owner can read; a new one where there is none yet.

    It stays the same over restarts, so that open pages go on.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            token = secrets.token_urlsafe(TOKEN_BYTES)
            file.write(token)
        return token
    except FileExistsError:
        path.chmod(0o600)
        return path.read_text(encoding="ascii").strip()


def seal(server_folder: Path, parts: Sequence[str]) -> str:
    """Returns a code for texts that only a server of this root can make."""
    server_folder.mkdir(exist_ok=True)
    key = read_token(server_folder / TOKEN)
    return hmac.new(key.encode(), json.dumps(parts).encode(), hashlib.sha256).hexdigest()
