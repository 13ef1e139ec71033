"""Pure network pieces: attention, token layouts, sequence mixers, positions, modulation."""
