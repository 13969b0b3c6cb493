"""How it is measured: turns, ratios with their intervals, memory."""
