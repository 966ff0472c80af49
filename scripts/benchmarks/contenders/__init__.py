"""The two roles of every contender: one module each, with `write` and `read`."""
