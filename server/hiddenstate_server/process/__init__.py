"""Processes of the server: workers and their supervisor."""
