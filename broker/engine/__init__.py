"""What both faces run: an asyncio engine for each of producer, replica and inspector."""
