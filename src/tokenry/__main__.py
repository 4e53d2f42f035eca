"""``python -m tokenry``."""

from tokenry.cli import main

main()
