"""How much memory sessions take: opens them all and prints the bytes by which the server grew.

`python -m bench.memory '{"port": ..., ...}'` takes the fields of `Load`.
"""

import json
import sys

import uvloop

from bench.load import Load, opened_streams
from bench.usage import Usage


async def growth(load: Load) -> int:
    """Resident bytes after less those before."""
    server = Usage(load.pid)
    before = server.resident()
    streams = await opened_streams(load)
    after = server.resident()
    for stream in streams:
        stream.protocol.close()
    return after - before


if __name__ == "__main__":
    print(json.dumps(uvloop.run(growth(Load(**json.loads(sys.argv[1]))))))
