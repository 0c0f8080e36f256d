"""A vocabulary of phrases for finding the directions that images and texts share.

`Head.shared` needs texts such as people type, of everything that pictures show, but no pictures to
go with them. The nouns are in ``vocabulary.txt``, by topic; here they meet a few frames. For the
packaged encoder the phrases are those of the scene world, the only ones that it understands.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from boxwood import scenes

TINY = "tiny-scenes"
"""The name of the packaged encoder."""

_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white",
            "grey", "golden")  # fmt: skip
_COLOURED = ("clothing", "shoes and accessories", "vehicles", "furniture", "birds")

# What is said of the nouns of a topic; {} is the noun with its article.
_FRAMES: dict[str, tuple[str, ...]] = {
    "animals": ("{} in the grass", "a close-up of {}", "{} at the zoo", "{} running"),
    "birds": ("{} in flight", "{} on a branch", "a close-up of {}"),
    "plants": ("{} in a garden", "{} in spring", "a close-up of {}"),
    "food": ("{} on a plate", "{} on a wooden table", "home-made {noun}"),
    "fruits and vegetables": ("{} on a table", "a pile of {noun}", "{} cut in half"),
    "drinks": ("{} on a table", "someone holding {}"),
    "clothing": ("a man wearing {}", "a woman wearing {}", "{} on a white background"),
    "shoes and accessories": ("a person with {}", "{} on a white background"),
    "vehicles": ("{} in the street", "an old {noun}", "{} parked outside"),
    "ships and aircraft": ("{} in the distance", "a large {noun}", "a view of {} from above"),
    "furniture": ("{} in a room", "an old {noun}", "modern {noun}"),
    "kitchen": ("{} in a kitchen", "{} on a table"),
    "tools": ("{} on a workbench", "someone using {}", "a rusty {noun}"),
    "electronics": ("{} on a desk", "a product photo of {}"),
    "office and school": ("{} on a desk", "a product photo of {}"),
    "music": ("someone playing {}", "{} on a stage"),
    "sport": ("someone with {}", "{} on the ground"),
    "toys and games": ("a child with {}", "a product photo of {}"),
    "buildings": ("{} at night", "{} under a blue sky", "an old {noun}", "{} seen from below"),
    "rooms": ("the inside of {}", "an empty {noun}", "a bright {noun}"),
    "landscapes": ("{} at sunset", "{} in winter", "an aerial view of {}", "{} in the fog"),
    "sky and weather": ("{} over the sea", "{} above a town"),
    "street": ("{} in a city", "{} in the rain"),
    "people": ("a portrait of {}", "{} at work", "{} smiling", "{} outdoors"),
    "body": ("a close-up of {}", "a drawing of {}"),
    "activities": ("{} outdoors", "{} in a city"),
    "materials": ("a texture of {}", "a close-up of {}"),
    "science": ("a drawing of {}", "a close-up of {}"),
    "containers": ("{} on the floor", "an empty {noun}"),
    "weapons and war": ("{} in a museum", "a drawing of {}"),
    "art": ("{} on a wall", "{} in a museum"),
}

_STYLES = (
    "a blurred photo", "a photo taken at night", "a black and white photo", "an aerial photo",
    "a photo taken indoors", "a photo taken outdoors", "a close-up photo", "a panorama", "a selfie",
    "a group photo", "a wide street scene", "a product photo on white", "a passport photo",
    "a photo taken under water", "a silhouette against the light", "a long exposure of lights",
    "a photo full of people", "a photo of nobody", "an empty scene", "a dark picture",
    "a bright picture", "a colourful picture", "a picture with few colours", "a sketch",
    "a painting of a landscape", "a painting of a person", "a diagram with labels",
    "a picture of text",
    "a screenshot of a program", "a scanned document", "a computer drawing", "a cartoon character",
    "a pattern that repeats", "a sunny day", "a rainy day", "a snowy day", "a foggy morning",
    "a summer evening", "an autumn forest", "a spring meadow",
)  # fmt: skip


@cache
def nouns() -> dict[str, tuple[tuple[str, bool], ...]]:
    """The nouns by topic, as (noun, takes an article)."""
    found: dict[str, tuple[tuple[str, bool], ...]] = {}
    topic = ""
    text = files("boxwood.encode").joinpath("vocabulary.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("["):
            topic = line.strip("[]")
            found[topic] = ()
        elif line and not line.startswith("#"):
            words = [word.strip() for word in line.split(",") if word.strip()]
            found[topic] += tuple((w.removesuffix("*"), not w.endswith("*")) for w in words)
    return found


def _article(text: str) -> str:
    # By sound, not by letter: "a uniform", "an hourglass".
    if text.startswith(("uniform", "university", "ukulele", "unicycle")):
        return "a "
    return "an " if text.startswith(("a", "e", "i", "o", "u", "hour", "x-ray")) else "a "


@cache
def _phrases() -> tuple[str, ...]:
    found: dict[str, None] = {}
    for topic, words in nouns().items():
        for place, (noun, counted) in enumerate(words):
            thing = _article(noun) + noun if counted else noun
            # Half the nouns bare, as people type them: every phrase costs time when it is embedded.
            found[noun if place % 2 else f"a photo of {thing}"] = None
            frames = [f for f in _FRAMES[topic] if counted or "{noun}" not in f]
            found[frames[place % len(frames)].format(thing, noun=noun)] = None
            if topic in _COLOURED and counted:
                colour = _COLOURS[place % len(_COLOURS)]
                found[f"{_article(colour)}{colour} {noun}"] = None
    for colour in _COLOURS:
        found[f"something {colour}"] = found[f"a mostly {colour} picture"] = None
    found.update(dict.fromkeys(_STYLES))
    return tuple(found)


def vocabulary(encoder: str) -> list[str]:
    """Some thousand distinct phrases for an encoder, by its name; always the same, in one order."""
    return scenes.phrases() if encoder == TINY else list(_phrases())
