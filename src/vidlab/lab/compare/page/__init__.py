"""One HTML file with everything in it: tables, plots and videos; it asks no other place for anything."""
