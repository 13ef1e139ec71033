"""Captions in varied natural wording, and the exact list of what each one names."""

from dataclasses import dataclass
from random import Random

from vidlab.data.moving_shapes import words
from vidlab.data.moving_shapes.factors import carried
from vidlab.data.moving_shapes.scene import DIRECTIONS, PANS
from vidlab.data.moving_shapes.words import Verb
from vidlab.factors import Factors, ObjectFactors

# How often a caption speaks of what it may leave out. Color and shape are always named.
NAMES_SIZE = 0.6
NAMES_SPEED = 0.5
NAMES_MOTION = 0.95
NAMES_POSITION = 0.5
NAMES_BACKGROUND = 0.9
NAMES_BACKGROUND_COLORS = 0.85
NAMES_CAMERA = 0.85
NAMES_RELATION = 0.6


@dataclass(frozen=True)
class Caption:
    """A caption and the factors it names, in the form of ``Factors.named``."""

    text: str
    named: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """A piece of a caption and what it names; an empty text names nothing."""

    text: str = ""
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Action:
    """What an object does, in both verb forms, and what that names."""

    verb: Verb
    named: tuple[str, ...]


def write_caption(rng: Random, factors: Factors) -> Caption:
    """Draw a caption of a clip with these factors."""
    if len(factors.objects) == 1:
        body = _one(rng, factors)
    elif factors.occlusion:
        body = _passing(rng, factors)
    else:
        body = _two(rng, factors)
    return Caption(body.text, tuple(sorted(set(body.named))))


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _one(rng: Random, factors: Factors) -> _Part:
    seen = factors.objects[0]
    subject = _noun(rng, seen, 0)
    camera = _camera(rng, factors)
    background = _background(rng, factors)
    if camera.text and carried(seen.motion, factors.camera) and rng.random() < 0.6:
        # The camera's motion is all there is: the object itself rests.
        return _join(_camera_on(rng, factors, camera), subject, background)
    if rng.random() >= NAMES_MOTION:
        opener = _Part(rng.choice((*words.OPENERS, "")))
        return _join(opener, subject, background, _while(rng, camera))
    action, place = _action(rng, factors, 0), _place(rng, seen, 0)
    return _join(_clause(rng, subject, action, place, background), _while(rng, camera))


def _clause(rng: Random, subject: _Part, action: _Action, place: _Part, background: _Part) -> _Part:
    """A sentence or a noun phrase about one object; its place or the background may come first."""
    form = rng.randrange(6)
    if form == 0 and background.text:
        return _join(_comma(background), subject, place, _done(action))
    if form == 1 and place.text:
        return _join(_comma(place), subject, _done(action), background)
    if form == 2:
        return _join(_Part(rng.choice(words.OPENERS)), subject, place, _doing(action), background)
    if form == 3:
        return _join(_Part("there is"), subject, place, _doing(action), background)
    verb = _doing(action) if form == 4 else _done(action)
    return _join(subject, place, verb, background)


def _two(rng: Random, factors: Factors) -> _Part:
    first, second = (0, 1) if rng.random() < 0.5 else (1, 0)
    one = _noun(rng, factors.objects[first], first)
    two = _noun(rng, factors.objects[second], second)
    one_does, two_does = _action(rng, factors, first), _action(rng, factors, second)
    background, camera = _background(rng, factors), _while(rng, _camera(rng, factors))
    # One "while" is enough for a sentence.
    link = _Part(rng.choice(("and", ", and") if camera.text else ("while", "and", ", while", ", and")))
    if not factors.relation or rng.random() >= NAMES_RELATION:
        return _join(one, _done(one_does), link, two, _done(two_does), background, camera)
    stated = _relation(rng, factors, first)
    relation, lasts = stated.part, stated.lasts
    form = rng.randrange(3)
    if form == 0:
        # "to the left of a red square that spins, a blue circle drifts up"
        start = relation if lasts else _Part(f"starting {relation.text}", relation.named)
        two = _comma(_join(two, _Part("that"), _done(two_does)))
        return _join(start, two, one, _done(one_does), background, camera)
    if form == 1:
        # "a blue circle to the left of a red square drifts up"
        if lasts:
            return _join(one, relation, two, _done(one_does), background, camera)
        return _join(_comma(one), _Part("at first"), relation, _comma(two), _done(one_does), background, camera)
    # "a blue circle is to the left of a red square; the circle drifts up while the square spins"
    again, also = (_Part(f"the {factors.objects[index].shape}") for index in (first, second))
    opening = _join(one, _Part("is" if lasts else "starts"), relation, two, background, _Part(";"))
    return _join(opening, again, _done(one_does), link, also, _done(two_does), camera)


def _passing(rng: Random, factors: Factors) -> _Part:
    verb = rng.choice(words.PASSES)
    front, back = factors.objects[1], factors.objects[0]
    way = _Part()
    if rng.random() < 0.5:
        way = _Part(f", heading {rng.choice(words.TOWARDS[front.motion])}", ("objects.1.motion",))
    passing = _Part(verb.finite if rng.random() < 0.6 else verb.participle, ("occlusion",))
    behind = _noun(rng, back, 0, still=rng.random() < 0.3)
    return _join(_noun(rng, front, 1), passing, behind, way, _background(rng, factors))


def _noun(rng: Random, seen: ObjectFactors, index: int, still: bool = False) -> _Part:
    named = [f"objects.{index}.color", f"objects.{index}.shape"]
    text = f"{seen.color} {rng.choice(words.SHAPE_WORDS[seen.shape])}"
    if seen.size != "varying" and rng.random() < NAMES_SIZE:
        text = f"{rng.choice(words.SIZE_WORDS[seen.size])} {text}"
        named.append(f"objects.{index}.size")
    if still:
        text = f"{rng.choice(('still', 'motionless', 'stationary'))} {text}"
        named.append(f"objects.{index}.motion")
    return _Part(with_article(text), tuple(named))


def _action(rng: Random, factors: Factors, index: int) -> _Action:
    seen, motion, speed = factors.objects[index], f"objects.{index}.motion", f"objects.{index}.speed"
    panned = factors.camera in PANS
    if seen.motion not in DIRECTIONS:
        verb = rng.choice(words.MOTION_VERBS[seen.motion])
        # Under a pan, an object that keeps its place on screen is not at rest in the scene.
        return _Action(
            _with(verb, rng.choice(words.ON_SCREEN)) if panned and seen.motion == "still" else verb, (motion,)
        )
    tail = rng.choice(words.TOWARDS[seen.motion])
    if panned and rng.random() < 0.5:
        tail = f"{tail} {rng.choice(words.ON_SCREEN)}"
    if rng.random() >= NAMES_SPEED:
        verbs = words.MOVES + (words.SUITS_SLOW if seen.speed == "slow" else ())
        return _Action(_with(rng.choice(verbs), tail), (motion,))
    if rng.random() < 0.4:
        verbs = words.NAMES_SLOW if seen.speed == "slow" else words.NAMES_FAST
        return _Action(_with(rng.choice(verbs), tail), (motion, speed))
    verb, adverb = rng.choice(words.MOVES), rng.choice(words.ADVERBS[seen.speed])
    if adverb in words.BEFORE_VERB and rng.random() < 0.5:
        verb = Verb(f"{adverb} {verb.finite}", f"{adverb} {verb.participle}")
        return _Action(_with(verb, tail), (motion, speed))
    return _Action(_with(verb, f"{tail} {adverb}"), (motion, speed))


def _with(verb: Verb, tail: str) -> Verb:
    return Verb(f"{verb.finite} {tail}", f"{verb.participle} {tail}")


def _done(action: _Action) -> _Part:
    return _Part(action.verb.finite, action.named)


def _doing(action: _Action) -> _Part:
    return _Part(action.verb.participle, action.named)


def _place(rng: Random, seen: ObjectFactors, index: int) -> _Part:
    if not seen.position or rng.random() >= NAMES_POSITION:
        return _Part()
    return _Part(rng.choice(words.POSITIONS[seen.position]), (f"objects.{index}.position",))


@dataclass(frozen=True)
class _Relation:
    """The wording of a relation, and whether it holds for the whole clip."""

    part: _Part
    lasts: bool


def _relation(rng: Random, factors: Factors, first: int) -> _Relation:
    """Where the first-named object is, seen from the other one."""
    name = factors.relation if first == 0 else words.OPPOSITE[factors.relation]
    lasts = factors.relation_frames == len(factors.objects[0].x)
    return _Relation(_Part(rng.choice(words.RELATIONS[name]), ("relation",)), lasts)


def _background(rng: Random, factors: Factors) -> _Part:
    if rng.random() >= NAMES_BACKGROUND:
        return _Part()
    colors = [rng.choice(words.COLOR_WORDS.get(color, (color,))) for color in factors.background_colors]
    colored = rng.random() < NAMES_BACKGROUND_COLORS
    if factors.background == "plain":
        # The color is the plain background's only mark, so it is named more often.
        if colored or rng.random() < 0.7:
            return _Part(rng.choice(words.PLAIN).format(*colors), ("background", "background_colors"))
        return _Part(rng.choice(words.PLAIN_UNCOLORED), ("background",))
    rng.shuffle(colors)
    table = words.TEXTURED_COLORED if colored else words.TEXTURED
    text = f"{rng.choice(words.ON)} {rng.choice(table[factors.background]).format(*colors)}"
    return _Part(text, ("background", "background_colors") if colored else ("background",))


def _camera(rng: Random, factors: Factors) -> _Part:
    if factors.camera == "fixed" or rng.random() >= NAMES_CAMERA:
        return _Part()
    if factors.camera in PANS:
        towards = rng.choice(words.TOWARDS[factors.camera.removeprefix("pan ")])
        return _Part(rng.choice(words.CAMERA_PAN).format(towards), ("camera",))
    return _Part(rng.choice(words.CAMERA_ZOOM[factors.camera]), ("camera",))


def _camera_on(rng: Random, factors: Factors, camera: _Part) -> _Part:
    if factors.camera in PANS:
        return _Part(f"{camera.text} past", camera.named)
    return _Part(rng.choice(words.CAMERA_ON[factors.camera]), camera.named)


def _while(rng: Random, camera: _Part) -> _Part:
    return _Part(f"{rng.choice(('while', 'as'))} {camera.text}", camera.named) if camera.text else camera


def _comma(part: _Part) -> _Part:
    return _Part(f"{part.text},", part.named)


def _join(*parts: _Part) -> _Part:
    """The pieces that are there, one space apart, punctuation closed up."""
    text = " ".join(part.text for part in parts if part.text)
    text = text.replace(" ,", ",").replace(" ;", ";")
    return _Part(text, tuple(name for part in parts for name in part.named))
