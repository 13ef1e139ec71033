"""Published systems: all their parts, used together as their authors use them."""
