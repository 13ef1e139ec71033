"""What captioners are asked, word for word as published (Open-Sora Plan v1.3, arXiv:2412.00131, section 4.3)."""

VIDEO = (
    "Please describe the content of this video in as much detail as possible, including the objects, scenery, animals, "
    "characters, and camera movements within the video. Please start the description with the video content directly. "
    "Please describe the content of the video and the changes that occur, in chronological order."
)
