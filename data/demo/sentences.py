"""Generate the explanations of a demo picture, which describe the scene in words that depend on the emotion."""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from data.demo.scenes import Scene

COLORS = {
    "candy": ("candy pink", "bright pink", "pink and turquoise", "bubblegum"),
    "luminous": ("blue and gold", "golden", "glowing gold", "luminous gold"),
    "meadow": ("soft green", "fresh green", "green and cream", "leafy green"),
    "pastel": ("pastel", "lilac and peach", "powdery lilac", "pale peach"),
    "fire": ("orange", "fiery orange", "red and orange", "hot orange"),
    "blood": ("red and black", "blood red", "crimson", "deep crimson"),
    "murk": ("murky green", "olive", "mustard and olive", "swampy green"),
    "night": ("midnight blue", "black and navy", "inky blue", "dark navy"),
    "ash": ("grey", "ashen grey", "slate grey", "grey and steel"),
    "earth": ("beige", "sandy brown", "brown and ochre", "dusty beige"),
    "sea": ("teal", "sea blue", "cool teal", "blue and white"),
    "violet": ("violet", "purple and magenta", "electric purple", "deep violet"),
}
# Singular and plural names of each subject.
NOUNS = {
    "balloons": (("bunch of balloons", "balloons", "party balloons"), ("bunches of balloons", "balloons")),
    "blobs": (("blobs", "lumpy shapes", "oozing lumps"), ("blobs", "lumpy shapes", "oozing lumps")),
    "boat": (("boat", "sailboat", "sailing boat"), ("boats", "sailboats", "sailing boats")),
    "burst": (("fireworks", "burst of sparks", "exploding sparks"), ("fireworks", "bursts of sparks")),
    "cat": (("cat", "kitten", "kitty"), ("cats", "kittens", "kitties")),
    "cottage": (("cottage", "house", "farmhouse"), ("cottages", "houses", "farmhouses")),
    "eyes": (("eyes", "staring eyes", "slit eyes"), ("eyes", "staring eyes", "slit eyes")),
    "figure": (("figure", "person in the long coat", "man in the hat"), ("figures", "people in long coats")),
    "flowers": (("flowers", "blossoms", "daisies"), ("flowers", "blossoms", "daisies")),
    "fruit": (("plate of fruit", "spotted fruit", "apples"), ("plates of fruit", "spotted apples")),
    "grid": (("grid", "checkered squares", "tiles"), ("grids", "checkered squares", "tiles")),
    "horse": (("horse", "pony", "stallion"), ("horses", "ponies", "stallions")),
    "jagged": (("jagged shape", "spiky shadow", "pointed spikes"), ("jagged shapes", "spiky shadows")),
    "mountain": (("mountain", "snowy peaks", "summit"), ("mountains", "snowy peaks", "summits")),
    "rings": (("circles", "rings", "round targets"), ("circles", "rings", "round targets")),
    "slashes": (("slashes", "sharp shards", "slanted blades"), ("slashes", "sharp shards", "slanted blades")),
    "storm": (("storm cloud", "thundercloud", "lightning"), ("storm clouds", "thunderclouds")),
    "sun": (("sun", "round sun", "sun disc"), ("suns", "round suns")),
    "tree": (("bare tree", "leafless tree", "empty branches"), ("bare trees", "leafless trees")),
}
WHERE = {
    "vast": ("under such a huge sky", "below so much open sky", "beneath the wide sky"),
    "high": ("under the high horizon", "with all that land around", "on the broad stretch of land"),
    "centered": ("right in the middle", "in the centre of the picture", "at the very centre"),
    "close": ("filling the whole canvas", "so large and close", "taking up the entire frame"),
    "diagonal": ("on the tilted slope", "along the steep diagonal", "on that slanting hill"),
    "scattered": ("scattered across the canvas", "here and there", "spread all over the picture"),
}
PLACES = {"left": ("on the left", "over on the left side"), "right": ("on the right", "over on the right side")}
STROKES = {
    "broad": ("broad strokes", "wide flat strokes", "thick sideways strokes"),
    "dabs": ("dabs of paint", "little dots", "speckled dabs"),
    "drips": ("drips", "runs of dripping paint", "long vertical streaks"),
    "hatching": ("scratchy lines", "hatched marks", "scratched brush marks"),
    "smooth": ("blended layers", "hazy blurred edges", "smooth blurs"),
    "swirls": ("swirls", "swirling strokes", "curling brush marks"),
}
TONES = ("colors", "tones", "hues", "shades")

# Actions of each subject, for positive and for negative emotions.
ACTS = {
    "balloons": (("bobbing about", "floating up"), ("pulling at their strings", "drifting off")),
    "blobs": (("bouncing around", "bubbling up"), ("leaking and spreading", "swelling up")),
    "boat": (("gliding along", "sailing home"), ("drifting without a crew", "leaning in the wind")),
    "burst": (("sparkling and popping", "lighting everything up"), ("cracking and flashing", "burning out")),
    "cat": (("grinning at me", "sitting there so smug"), ("glaring at me", "waiting alone")),
    "cottage": (("resting in the quiet", "smoking from its chimney"), ("standing deserted", "sitting empty")),
    "eyes": (("peeking out", "winking at me"), ("watching me", "following every move")),
    "figure": (("standing still in thought", "taking it all in"), ("standing alone", "waiting for nobody")),
    "flowers": (("blooming together", "dancing in a breeze"), ("losing their petals", "starting to wilt")),
    "fruit": (("waiting to be tasted", "sharing a plate"), ("going bad", "covered in brown spots")),
    "grid": (("lining up neatly", "fitting together"), ("shutting everything in", "repeating without end")),
    "horse": (("running free", "galloping along"), ("bolting away", "kicking up dirt")),
    "jagged": (("reaching upward", "rising like a crown"), ("looming over everything", "clawing upward")),
    "mountain": (("rising to the clouds", "shining with snow"), ("blocking the way", "towering coldly")),
    "rings": (("rolling about", "balancing on a line"), ("going round and round", "staring like empty lenses")),
    "slashes": (("shooting across", "flying past"), ("cutting through the air", "stabbing at each other")),
    "storm": (("flashing with power", "gathering its strength"), ("rumbling and striking", "closing in")),
    "sun": (("shining over it all", "glowing softly"), ("sinking away", "fading out")),
    "tree": (("reaching for the light", "waiting for spring"), ("drooping and worn", "standing there without a leaf")),
}


class Voice(NamedTuple):
    """The words and phrases of one emotion; alternatives are separated by |."""

    positive: bool | None  # which of the ACTS to use; None: either
    adjectives: str
    feelings: str  # "it makes me …"
    likenesses: str  # "it reminds me of …"
    verdicts: str  # clauses
    frames: str  # sentences for this emotion only


VOICES = {
    "amusement": Voice(
        True,
        "funny|silly|playful|goofy|cheerful|comical|whimsical|cute|quirky",
        "smile|laugh out loud|giggle|chuckle a little|grin like a child",
        "a birthday party|an old cartoon|a toy shop|a joke my uncle tells|a page from a comic book",
        "it cheers me up|i cannot stop smiling|somebody had fun painting this|it is hard to stay serious",
        "{the} {subj} {act} {is} just hilarious|i had to laugh at {the} {subj} {where}|who paints {the} {subj} in "
        "{color}? so funny|{the} {subj} {look} like a clown in {color} {tones}",
    ),
    "awe": Voice(
        True,
        "majestic|breathtaking|magnificent|sublime|grand|glorious|wondrous|mighty|spectacular",
        "feel tiny|hold my breath|stop and stare in wonder|feel part of something greater|look up in silence",
        "the first time i saw the ocean|standing in a cathedral|the vastness of the universe|a vision from a legend",
        "i am lost for words|nature is so powerful|it takes my breath away|the artist has such incredible skill",
        "i am amazed by the {strokes} and how {adj} {the} {subj} {look}|there is such greatness in {the} {subj} {act}|"
        "the {tones} of {color} {where2} are beyond words|{the} {subj} {where} {is} a {adj} wonder",
    ),
    "contentment": Voice(
        True,
        "peaceful|calm|serene|gentle|tranquil|cozy|soothing|pleasant|lovely|restful",
        "feel at ease|want to sit down and rest|feel safe and warm|breathe slowly|feel right at home",
        "summer days at my grandmother's|a quiet sunday morning|a walk in the country|a nap after lunch",
        "i could stay here for hours|all is well in this place|nothing needs to hurry|i would hang it in my bedroom",
        "the {adj} {tones} of {color} relax me|i would love to be near {the} {subj} {where}|{the} {subj} {act} "
        "{give} me a sense of peace|everything is in harmony, from the {strokes} to {the} {subj}",
    ),
    "excitement": Voice(
        True,
        "thrilling|energetic|vibrant|lively|dynamic|dazzling|electrifying|wild|adventurous",
        "want to jump up and dance|feel alive|want to join in|feel a rush of energy|cheer",
        "a carnival at full speed|the last minute of a race|a rock concert|the start of an adventure",
        "my heart beats faster|there is so much going on|something great is about to happen|i feel the action",
        "the {strokes} and {the} {subj} are full of motion|i see {the} {subj} {act}, what a thrill|so much energy in "
        "the {color} {tones} {where2}|i want to be there with {the} {subj} {act}",
    ),
    "anger": Voice(
        False,
        "furious|violent|hostile|aggressive|harsh|brutal|raging|bitter|cruel",
        "clench my fists|feel angry|want to shout|boil inside|feel attacked",
        "a fight that got out of hand|the way my old boss yelled|a war|an argument at night",
        "there is so much rage in it|someone was mad when they painted this|it feels like an insult|i resent it",
        "{the} {subj} {act} {is} nothing but rage|the {strokes} hit the canvas in fury|the {color} {tones} scream at "
        "me {where2}|i am annoyed by {the} {adj} {subj} {where}",
    ),
    "disgust": Voice(
        False,
        "gross|nasty|sickening|filthy|repulsive|slimy|foul|ugly|rotten",
        "feel sick|want to look away|gag|lose my appetite|want to wash my hands",
        "food left out for weeks|mold under a sink|something stuck to a shoe|a dirty swamp",
        "i can almost smell it|i would never hang this up|my stomach turns|it is hard to keep looking",
        "{the} {subj} {look} like vomit in {color} {tones}|yuck, i see {the} {subj} {act}|the {strokes} look like "
        "slime on {the} {subj}|there is something unclean about {the} {subj} {where}",
    ),
    "fear": Voice(
        False,
        "scary|creepy|menacing|sinister|ominous|eerie|threatening|haunting|terrifying",
        "want to run away|shiver|feel trapped|hide under a blanket|look over my shoulder",
        "a nightmare i had as a kid|a scene in a horror film|being alone in the woods|a ghost story",
        "something bad is about to happen|i would not dare go near|danger is close|nobody would hear me",
        "{the} {subj} {act} {give} me chills|i am afraid of what is behind {the} {subj}|the {color} {tones} hide "
        "something {where2}|{the} {adj} {subj} {where} {is} a threat",
    ),
    "sadness": Voice(
        False,
        "gloomy|lonely|somber|bleak|dreary|mournful|melancholy|weary|hopeless",
        "feel alone|want to cry|think of those i lost|feel empty|sigh",
        "a funeral in the rain|the day my friend moved away|a long winter|a letter that was never answered",
        "all joy is gone|there is no hope left here|nobody will come|it breaks my heart",
        "the {color} {tones} weep with {the} {subj}|i feel sorry for {the} {subj} {act}|{the} {subj} {where} {is} so "
        "lonely|even the {strokes} look like tears around {the} {subj}",
    ),
    "something else": Voice(
        None,
        "confusing|odd|puzzling|strange|plain|random|curious|unclear|dull",
        "wonder what it means|feel nothing much|tilt my head|feel unsure|ask questions",
        "a pattern on wallpaper|a test in school|the floor of an office|a puzzle with a missing piece",
        "i do not get the point|it could be anything|i feel neutral about it|my mind goes blank",
        "i am confused about {the} {subj} {where}|why {is} {the} {subj} {act}? i cannot tell|i wonder why the artist "
        "chose {color} {tones} for {the} {subj}|the {strokes} are curious but say little",
    ),
}
FRAMES = (
    "the {color} {tones} are {adj} and the {strokes} make me {feel}",
    "{the} {subj} {look} so {adj} {where}",
    "{the} {subj} {where} {remind} me of {like}",
    "i find the {strokes} around {the} {subj} {adj} and rather {adj2}",
    "everything about the {color} {tones} is {adj}, {verdict}",
    "{the} {adj} {subj} {where} {make} me {feel}",
    "with the {strokes} and {color} {tones} it is {adj}, like {like}",
    "looking at {the} {subj} {where}, {verdict}",
    "such {adj} {color} {tones}, {verdict}",
    "{the} {subj} {seem} {adj} because of the {color} {tones}",
    "i see {the} {subj} {act} and {verdict}",
    "the {strokes} look {adj} and {the} {subj} {make} me {feel}",
    "it reminds me of {like}, with {the} {adj} {subj} and the {color} {tones}",
    "so many {strokes} in {color}, it is {adj} and {verdict}",
    "looking at {the} {subj} {act} makes me {feel}",
    "{the} {subj} {act} {where} {look} {adj} to me",
    "the {color} paint around {the} {subj} gives this a {adj} mood",
    "{the} {subj} {make} me think of {like}, it is so {adj}",
)


def explain(scene: Scene, emotion: str, r: Random) -> str:
    """Return one annotator's explanation of `emotion`: 6 to 25 words, consistent with `scene`."""
    voice = VOICES[emotion]
    frame = r.choice(voice.frames.split("|") if r.random() < 0.3 else FRAMES)
    one, many = NOUNS[scene.subject]
    several = scene.composition == "scattered"
    noun = r.choice(many if several else one)
    plural = several or noun.split(" of ")[0].split(" in ")[0].endswith("s")
    adjective, second = r.sample(voice.adjectives.split("|"), k=2)
    good, bad = ACTS[scene.subject]
    act = {True: good, False: bad, None: good + bad}[voice.positive]
    where = WHERE[scene.composition]
    if not several and scene.place in PLACES and r.random() < 0.5:
        where = PLACES[scene.place]
    verbs = {verb: verb if plural else f"{verb}s" for verb in ("look", "remind", "make", "seem", "give")}
    text = frame.format(
        the=r.choice(("these", "the", "the")) if plural else r.choice(("this", "the", "the")),
        subj=noun,
        act=r.choice(act),
        where=r.choice(where),
        where2=r.choice(("here", "all around", "in this painting")),
        color=r.choice(COLORS[scene.palette]),
        tones=r.choice(TONES),
        strokes=r.choice(STROKES[scene.brush]),
        adj=adjective,
        adj2=second,
        feel=r.choice(voice.feelings.split("|")),
        like=r.choice(voice.likenesses.split("|")),
        verdict=r.choice(voice.verdicts.split("|")),
        **{"is": "are" if plural else "is"},
        **verbs,
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", text)
