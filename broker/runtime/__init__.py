"""Tasks, threads, forks, clocks and event loops; independent of Redis."""
