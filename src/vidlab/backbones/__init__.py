"""Video denoisers built from layers."""
