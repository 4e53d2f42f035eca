"""The table of models and data sets, and where they lie."""
