"""One clip on several processes: its tokens are dealt out from the patches to the head, and text is on all."""
