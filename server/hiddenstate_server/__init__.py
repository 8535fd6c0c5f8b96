"""The hiddenstate server: hosts recurrent models and keeps one hidden state per session."""

from importlib.metadata import version

__version__ = version("hiddenstate")
