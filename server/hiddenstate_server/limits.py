"""What clients may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What clients may take; seconds, rows and sessions."""

    max_sessions: int = 100_000
    max_stored_sessions: int = 10_000_000
    max_sessions_per_stream: int = 65_536
    max_session_backlog: int = 16_384
    max_stream_backlog: int = 65_536
    max_frame_rows: int = 16_384
    rewind_steps: int = 64
    max_generate_steps: int = 10_000
    max_generate_paths: int = 1_024
    max_generates_per_stream: int = 64
    max_generate_rows: int = 4_096
    idle_timeout: float = 600.0
    max_idle_timeout: float = 86_400.0
    detach_timeout: float = 60.0
