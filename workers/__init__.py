"""The processes beside Redis: flush workers publish, one scheduler writes the full state."""
