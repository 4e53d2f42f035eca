"""First floor: the only place that knows the inside of transformers classes."""
