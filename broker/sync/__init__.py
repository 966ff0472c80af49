"""The faces for ordinary, threaded code: each call runs on an event loop of its own thread."""
