"""Graph anchor-relation tokens and what surrounds them."""
