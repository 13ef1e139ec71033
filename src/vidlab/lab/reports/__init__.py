"""Reports on what a training would do: the plan of its data, its token layouts."""
