"""One file per system: its claim, the arms it compares, the data it uses."""
