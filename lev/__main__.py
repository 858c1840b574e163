"""``python -m lev``: the command line."""

from lev.cli import main

main()
