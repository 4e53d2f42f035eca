"""Static pages and figures."""
