"""Small image models and image sets."""
