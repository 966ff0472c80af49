"""All access to Redis: clients, routing, subscriptions, one typed method per Lua command."""
