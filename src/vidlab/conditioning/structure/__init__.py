"""Structure as a condition: signals of edges, depth and outlines, and which of them a clip is told."""
