"""The processes of the cost curves: each module has functions that one process runs."""
