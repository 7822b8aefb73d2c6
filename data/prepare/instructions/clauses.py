"""English grammar for removing clauses: function words, and patterns for where a clause begins and ends."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# --- word lists -------------------------------------------------------------------------------------------------------

DETERMINERS = _words("a an the this that these those his her its their my your our some any every each no such one two")
PRONOUNS = _words("i you he she it we they there me him us them who which what")
RELATIVE = _words("who which that")
JOINING = _words(
    "and or but yet so because since as if than when where while though although until unless that not of at by for "
    "from in into on onto over to under with without about like near"
)
AUXILIARY = _words("is are was were be been being am do does did has have had can could will would may might")
OTHER = _words("even just still very too quite also then there here maybe perhaps really more most all only")
FUNCTION = DETERMINERS | PRONOUNS | JOINING | AUXILIARY | OTHER
# Words of any annotation, without content of their own.
COMMON = _words(
    "picture pictures painting paintings image artwork art piece scene look looks looking feel feels feeling feelings "
    "see seeing seen make makes making me think seem seems appears give gives get thing things something it's i'm "
    "don't way kind sort lot bit sense emotion mood"
)
# Nouns that mean little without their adjective: `a sad mood` would leave `a mood`.
HOLLOW = _words(
    "air atmosphere aura day effect emotion emotions experience expression feel feeling feelings impression look looks "
    "manner memories moment mood note one part place quality sense sight situation state story thing things thought "
    "thoughts time tone touch vibe vibes way"
)

CUT = "\0"  # in place of a removed clause

INTENSIFIER = (
    r"(?:(?:a (?:little )?bit|a little|kind of|sort of|very|so|quite|really|rather|too|slightly|somewhat|pretty|"
    r"extremely|just|more|most|both|almost|truly|incredibly|deeply|simply|also|all|such|how) )"
)
LOOK = r"(?:look|looked|see|saw|watch|view|gaze|stare|think)(?: at| about| of| upon)?"
STATE = r"(?:looks?|looked|appears?|appeared|seems?|seemed|is|are|was|were)"
VERB = (
    r"(?:adds?|arouses?|betrays?|brings?|brought|carr(?:y|ies)|causes?|communicates?|conveys?|creates?|depicts?|"
    r"displays?|elicits?|emits?|evokes?|exudes?|express(?:es)?|feels|felt|fills?|generates?|gives?|gave|hints? at|"
    r"indicates?|induces?|inspires?|instills?|invokes?|leads?|leaves?|left|makes?|made|portrays?|presents?|produces?|"
    r"provides?|radiates?|reflects?|reminds?|represents?|shows?|stirs?|suggests?|symbolizes?|has|have|had|can|could|"
    rf"will|would|does|do|did|tends?|comes?|{STATE})"
)
ACTING = (
    r"(?:adding|bringing|causing|conveying|creating|depicting|evoking|expressing|filling|giving|inducing|inspiring|"
    r"invoking|leaving|making|portraying|showing|suggesting|symbolizing|having|feeling)"
)
STRESS = r"(?:(?:\w+ly|also|just|always|even|not) )*"
ABOUT = r"(?:of|at|with|by|about|for|in|from|on|over|to see|looking(?: at)?|seeing|watching|thinking of|to look at)"

# --- where a clause may begin, what may not begin or end one ----------------------------------------------------------

STARTS = (
    r"because|since|due to|but|while|though|although|even though|whenever|when|where|which|that|who|whose|than|if|how|"
    r"looking at|watching|seeing|to see|to look|in addition to|"
    r"so(?= (?:i|you|he|she|it|we|they|there|the|this|that)\b)|"
    rf"as (?:it|he|she|they|there|if|though|the|this|these|i|we|you|a|an)|{ACTING}|(?:and |or )?{STRESS}{VERB}|"
    r"and (?:the|this|that|these|those|a|an|how|what|his|her|their|its|my|it)|"
    r"(?:and )?(?:i|he|she|they|we|you|there)(?:['’]\w+)?(?= \w)|(?:and )?it['’]s|"
    r"(?:and )?it (?:is|was|looks|makes|made|gives|gave|has|feels|felt|reminds|seems|seemed|just|also|really|almost|"
    r"could|would|does)"
)
NOT_A_NOUN = "".join(rf"(?<!\b{word})" for word in ("the", "a", "an", "his", "its", "their", "my", "of"))
BOUNDARY = re.compile(rf"{CUT}|(?:[,;:()]+|\.\.+| [-–—]+)(?=\s|\w)|{NOT_A_NOUN}\s+(?=(?:{STARTS})\b)", re.IGNORECASE)
SUBORDINATE = (
    rf"(?:when(?:ever)?|as|if|while|once) (?:i|you|we|one) {LOOK}|"
    r"(?:when(?:ever)?|while) (?:looking|viewing|seeing)(?: at)?|because(?: of)?|since|"
    r"as(?= (?:it|he|she|they|the|there|this|these|i|we|you)\b)|due to|while|although|even though|though"
)
OPENING = re.compile(rf"(?:{SUBORDINATE})\b\s*", re.IGNORECASE)  # removed with its main clause
LEADING = re.compile(
    rf"(?:{SUBORDINATE}|i {LOOK}(?= (?:the|this|these|a|an|how)\b)|and|but|or|so|that|also|then|thus|to see|to look at|"
    r"to watch|looking at|looking|seeing|watching|especially|in addition to|even when|even if|how(?! much| many))\b\s*",
    re.IGNORECASE,
)
TRAILING = re.compile(
    rf"(?:[\s,;:(–—-]|\b(?:{VERB} (?:me|us|you|one|it|him|her|them)(?: feel)?(?: like)?\s*$|in addition|and|or|but|"
    r"because|with|of|the|a|an|to|that|which|who|it|very|so|also|by|for|in|at|on|as|from|especially|really|just|both|"
    rf"more|i|i['’]m|am|be|not|how|like|than|when|where|while|{VERB})\b)+$",
    re.IGNORECASE,
)
PREDICATE = re.compile(rf"\s+{STRESS}{VERB}\b", re.IGNORECASE)
SUBJECT = re.compile(
    rf"[,;:]|\s*(?:and|or|but|so|that|which|who|{SUBORDINATE})\b|\s*(?:i|you|he|she|it|we|they|there|this)$",
    re.IGNORECASE,
)
HANGING = re.compile(
    rf"(?:(?:that|which|who|whose)\s+)?{STRESS}{VERB}\b|{ACTING}\b|(?:than|if|who|whose|which)\b", re.IGNORECASE
)
CONDITION = re.compile(r"if (?!i look|you look)|unless ", re.IGNORECASE)
SENTENCE = re.compile(rf"(?:{'|'.join(sorted(PRONOUNS))})\b|(?:this|that|these|those) {VERB}\b", re.IGNORECASE)
