"""Codebooks: nearest codes, running averages, health, gradient estimators, entropy, ranks."""
