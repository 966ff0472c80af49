"""The chaos run: a fleet, a random schedule of faults, and a verdict over what was recorded."""
