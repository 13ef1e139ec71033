"""Tables, lists and captions that others wrote."""
