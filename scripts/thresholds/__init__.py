"""The two batching scenarios, by count and by age, as a command."""
