"""Exit codes of the command line."""

OK, CLAIM_FAILED, BAD_INPUT, MISSING, DAMAGED, INTERRUPTED = 0, 1, 2, 3, 4, 130
