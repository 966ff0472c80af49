"""The demo: real flights replayed by three nodes, followed by replicas, and checked."""
