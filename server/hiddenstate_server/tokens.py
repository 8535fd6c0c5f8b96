"""Bearer tokens: 256 random bits each, of which a file keeps only the hashes.

The file is TOML: a line `NAME = ["sha256:..."]` for each tenant, several hashes where a token is being replaced.
`python -m hiddenstate_server.tokens NAME >> tokens.toml` adds a tenant, and shows its token once.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hiddenstate_server.errors import StartError

_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def valid_name(name: str) -> bool:
    """Whether a tenant may be called so."""
    return _NAME.fullmatch(name) is not None


def digest(token: str) -> bytes:
    """SHA-256 of a token: enough for random ones, which nobody can guess."""
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> Mapping[bytes, str]:
    """The tenant of each token's digest; StartError where the file is not as it should be."""
    try:
        entries = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartError(f"the tokens file {path} cannot be read: {error}") from error
    tenants: dict[bytes, str] = {}
    for name, hashes in entries.items():
        if not valid_name(name):
            raise StartError(f"{path}: tenant {name!r} needs 1 to 64 characters of A-Z a-z 0-9 . _ : -")
        for text in hashes if isinstance(hashes, list) else [hashes]:
            match = _HASH.fullmatch(text) if isinstance(text, str) else None
            if match is None:
                raise StartError(f'{path}: tenant {name!r} needs a list of hashes such as "sha256:...", not {text!r}')
            if tenants.setdefault(bytes.fromhex(match[1]), name) != name:
                raise StartError(f"{path}: {name!r} has the token of another tenant; make one for each")
    if not tenants:
        raise StartError(f"{path} holds no tokens; make one with `python -m hiddenstate_server.tokens NAME`")
    return tenants


def main() -> None:
    """Prints a new token's line for the file, and to the terminal the token itself."""
    parser = argparse.ArgumentParser(
        prog="python -m hiddenstate_server.tokens",
        description="Makes a bearer token: its line for the file named by --tokens goes to standard output, "
        "the token itself, which is kept nowhere, to standard error.",
    )
    parser.add_argument("name", help="The tenant.")
    name = parser.parse_args().name
    if not valid_name(name):
        parser.error("a tenant's name has 1 to 64 characters of A-Z a-z 0-9 . _ : -")
    token = secrets.token_urlsafe(32)
    print(f'"{name}" = ["sha256:{digest(token).hex()}"]')
    print(token, file=sys.stderr)


if __name__ == "__main__":
    main()
