"""Typed statistics of producers, replicas, workers and shards, as frozen values."""
