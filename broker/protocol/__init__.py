"""The wire format and the Redis layout: numbers, names, bytes. Pure: no I/O, Redis or asyncio."""
