"""Small codecs, feature banks and audio benches."""
