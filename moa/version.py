"""Say the version, which plan files record too."""

__version__ = "0.1.0"
