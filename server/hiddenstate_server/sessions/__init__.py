"""The life of sessions: opened, kept, moved, copied, ended."""
