"""Pure network pieces: attention, token layouts, positions, modulation."""
