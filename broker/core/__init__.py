"""What producers and replicas hold, as pure state machines: input in, effects out."""
