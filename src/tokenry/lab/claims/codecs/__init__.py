"""Claims of the codecs wing."""
