"""Third floor: evidence. Real models and data, testbeds, claims, results and the report."""
