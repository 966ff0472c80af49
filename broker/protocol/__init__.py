"""The wire and the Redis layout: numbers, names, bytes. Pure: no I/O, no Redis, no asyncio."""
