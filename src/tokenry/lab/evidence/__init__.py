"""Claims, result files, runs and what they measure."""
