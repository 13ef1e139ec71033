"""DSG-Video: which objects of a caption no frame shows (STIV, arXiv:2412.07730, appendix C.1)."""
