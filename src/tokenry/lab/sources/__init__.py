"""Real data and real models read into plain objects."""
