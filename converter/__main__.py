"""`python -m converter` is `pixart`."""

from .cli import main

main()
