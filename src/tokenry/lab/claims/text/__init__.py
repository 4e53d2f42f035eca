"""Claims of the text wing."""
