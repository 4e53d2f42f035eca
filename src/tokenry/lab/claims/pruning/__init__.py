"""Claims of the pruning wing."""
