"""The eyes of the moving-shapes judge: from pixels to objects, background and camera, and from those to scores."""
