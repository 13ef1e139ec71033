"""The vision of the moving-shapes judge: from pixels to objects, background and camera, and to scores."""
