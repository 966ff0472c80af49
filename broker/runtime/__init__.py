"""Tasks, forks and event loops; independent of Redis."""
