"""Everything that speaks to Redis: clients, routing, one typed method for each Lua command."""
