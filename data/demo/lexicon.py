"""A synthetic lexicon of valence, arousal and dominance for the demo; the values were never measured.

Each row has the values (-1..1) of a group of words with similar affect, to which each word adds a small offset.
"""

from __future__ import annotations

from hashlib import blake2b

HEADER = "Word,Valence,Arousal,Dominance"
SPREAD = 0.08  # largest offset of a word
GROUPS = """
+.80 -.65 +.10: serene peaceful calm tranquil gentle quiet restful soothing relax nap
+.78 -.30 +.25: contentment cozy warm safe home pleasant lovely soft harmony rest ease peace resting gliding
+.82 +.45 +.30: funny silly playful goofy cheerful comical cute hilarious amusement fun joke party
+.85 +.50 +.35: smile laugh giggle chuckle grin grinning cheers joy dancing bubblegum
+.35 +.25 +.05: whimsical quirky cartoon clown comic bobbing toy
+.75 +.40 +.75: majestic magnificent grand glorious mighty greatness cathedral summit
+.80 +.45 +.10: awe breathtaking sublime wondrous spectacular wonder amazed vastness incredible ocean
+.55 +.10 +.70: powerful power skill nature towering legend
+.70 +.85 +.50: excitement thrilling thrill electrifying dazzling adventure adventurous carnival concert dance fireworks
+.60 +.80 +.55: energetic energy vibrant lively dynamic alive action rush race galloping
+.15 +.75 +.45: wild speed bursts burst exploding sparks flashing motion stallion
-.80 +.85 +.40: furious violent rage raging fury brutal war scream attacked
-.70 +.70 +.30: anger angry hostile aggressive cruel yelled shout mad fight boil argument insult
-.60 +.40 +.15: harsh bitter annoyed resent fists blades slashes stabbing cutting
-.80 +.35 -.05: disgust gross nasty sickening repulsive vomit gag foul yuck
-.70 +.15 -.20: filthy slimy rotten slime mold dirty unclean ugly oozing leaking
-.55 +.05 -.30: sick murky swamp swampy lumps blobs spotted
-.82 +.75 -.50: fear terrifying scary nightmare horror afraid threat threatening danger
-.65 +.55 -.30: creepy menacing sinister ominous eerie haunting ghost trapped shiver chills
-.45 +.50 +.10: looming jagged spiky spikes sharp storm thundercloud lightning glaring bad
-.80 -.25 -.55: sadness funeral cry tears weep mournful hopeless breaks
-.65 -.35 -.50: gloomy lonely somber bleak dreary melancholy alone sorry lost gone deserted
-.40 -.50 -.45: empty weary drooping worn leafless bare sigh winter wilt fading
-.10 +.15 -.25: confusing odd puzzling strange unclear confused unsure puzzle questions
-.15 -.45 -.10: plain dull random neutral blank wallpaper office beige dusty
+.25 +.20 +.05: curious pattern mind
+.65 +.15 +.20: golden gold luminous glowing shining sun light
+.60 +.30 +.10: pink pastel peach lilac turquoise candy flowers blossoms daisies balloons kitten
+.50 -.25 +.10: green fresh leafy cream cottage boat sailboat blooming summer
+.20 -.15 +.15: blue teal cool white sea sky
+.10 +.55 +.30: red orange fiery hot magenta violet purple electric
-.40 +.20 +.15: black crimson blood dark shadow midnight
-.25 -.40 -.15: grey ashen slate steel haze hazy
+.00 -.20 +.00: brown ochre sandy olive mustard squares grid tiles
+.05 +.00 +.25: mountain horse circles picture painting canvas artist
"""


def lexicon() -> dict[str, tuple[float, float, float]]:
    """Return (valence, arousal, dominance) in -1..1 by word, in alphabetical order."""
    values = {}
    for row in GROUPS.strip().splitlines():
        numbers, words = row.split(":")
        for word in words.split():
            shifts = ((byte / 127.5 - 1) * SPREAD for byte in blake2b(word.encode(), digest_size=3).digest())
            moved = (float(number) + shift for number, shift in zip(numbers.split(), shifts, strict=True))
            values[word] = tuple(round(max(-1.0, min(1.0, value)), 3) for value in moved)
    return dict(sorted(values.items()))


def lexicon_csv() -> str:
    """Return the content of the demo's lexicon file."""
    rows = (f"{word},{v:.3f},{a:.3f},{d:.3f}" for word, (v, a, d) in lexicon().items())
    return "\n".join([HEADER, *rows, ""])
