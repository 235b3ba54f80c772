"""The command line: `convert-pixart`, and `pixart` with its sub-commands."""

from .main import convert_main, main

__all__ = ["convert_main", "main"]
