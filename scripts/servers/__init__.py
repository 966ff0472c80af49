"""Real servers of tests and of scripts/faults: started here, dead when this process is."""
