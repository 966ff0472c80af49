"""`scripts/faults --damage`: whole servers as input, damaged beside a running fleet."""
