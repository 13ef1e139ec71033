"""Cleans captions of openings such as "This video shows" (Open-Sora Plan v1.3, arXiv:2412.00131, section 4.3)."""

import re

MEDIUM = r"(?:video|image|clip|footage|scene|animation|picture|film|photo|photograph)(?: clip| footage| sequence)?"
KIND = r"(?:(?:short|brief|given|provided|static|still|slow-motion|time-lapse|silent|animated) )?"
SHOWS = (
    r"(?:shows|showcases|depicts|features|captures|presents|displays|portrays|illustrates|contains|is of|is about|"
    r"opens with|opens on|begins with|begins by showing|starts with|starts by showing|is showing|is depicting|"
    r"shows us|appears to show|seems to show|focuses on)"
)
ADVERB = r"(?:(?:also|then|now|clearly|mainly|primarily|simply|initially) )?"
PREFIXES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:the|this|a|an) {KIND}{MEDIUM} {ADVERB}{SHOWS}:? (?=\S)",
        # "The video is a close-up of ...", and not "The video is dark"
        rf"(?:the|this) {KIND}{MEDIUM} is (?=(?:an?|the) )",
        rf"(?:in|throughout|within) (?:the|this) {KIND}{MEDIUM}(?:, |,? (?=we |there |you ))",
        r"(?:we can see|we see|you can see) (?=\S)",
        r"(?:caption|description|video description)s?: ?",
    )
)
CHAT = re.compile(
    r"(?:(?:sure|certainly|of course)[,!.:]? )?(?:here is|here's) (?:an? |the )?(?:detailed )?"
    r"(?:description|caption)[^:]{0,60}: ?",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(?<=[.!?]) +")


def cleaned(text: str) -> str:
    """The caption without "This video shows ..." and its like, at its beginning and at that of each sentence.

    White space becomes single spaces; a sentence that lost its beginning begins with a capital.
    """
    sentences = (_cleaned_sentence(sentence) for sentence in SENTENCE.split(_without_chat(text)))
    return " ".join(sentence for sentence in sentences if sentence)


def _without_chat(text: str) -> str:
    """White space as single spaces, and no "Sure! Here is a description:" in front."""
    text = " ".join(text.split())
    found = CHAT.match(text)
    return text[found.end() :] if found else text


def _cleaned_sentence(sentence: str) -> str:
    rest = sentence
    found = True
    while found:
        found = False
        for prefix in PREFIXES:
            match = prefix.match(rest)
            if match:
                rest, found = rest[match.end() :].lstrip(" ,"), True
    return rest if rest == sentence else rest[:1].upper() + rest[1:]
