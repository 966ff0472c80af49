"""Tasks, forks and event loops; knows nothing of Redis."""
