"""The worker processes: flush workers publish batches, a scheduler writes the full state."""
