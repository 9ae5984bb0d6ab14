"""Whether a short text has words of another language than English, by its letters and function words.

Statistical detectors need more text than a caption has. This needs a word that English does not have, so that it is
seldom wrong, and it misses what has none ("Hund bellt").
"""

import re
import unicodedata

_UNITS = "µμω"  # micro, and ohm in small
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

# Words that are English when written with their accents.
_LOANS = """
café cafés cliché façade naïve fiancé fiancée décor déjà à piñata cajón señor señora jalapeño crème brûlée entrée résumé
sauté flambé touché séance mêlée über fête piqué røde soufflé étude études cortège
"""

# Function words, and words of sound, of which one suffices: English has none that is spelt so.
_STRONG = """
una unos para por mientras sobre desde hacia entre muy esta este estos están está como pero cuando lejos fondo sonido
sonidos ruido lluvia agua viento pájaros calle uma umas nos nas pelo pela ao não são chuva água longe rua amb els
une dans avec qui ils elles nous vous être cette ces mais leur bruit bruits sont chez très où d'un d'une l'eau qu'il
c'est n'est
della delle degli nella nelle sulla sulle dalla dalle alla che uno gli suono suoni pioggia acqua mentre sono
und der dem ein eine einer eines einem einen auf vom zum zur bei nach durch über ist sind wird nicht aus ich auch
von geräusch vögel het een voor naar bij uit niet zijn wordt geluid vogels
och på är det ett från för ikke fra jeg lyden ei että ovat
się nie przez dla oraz jsou při ze ve bir ile sesi için yang dengan suara şi egy és hogy
"""

# One of these may be of a name, a song or a loan ("la la la", "tour de France", "Los Angeles"); two of them are not.
_WEAK = """
de la el le les des du et en un al lo il da os los las del sur se met van som av med dan das dos im je ja di pe cu unter
elle com mit til az od na
"""
_loan_words, _strong_words, _weak_words = (frozenset(words.split()) for words in (_LOANS, _STRONG, _WEAK))


def has_foreign_words(text: str) -> bool:
    """Whether letters of another script, or words that English does not have, stand in `text`."""
    words = [word.lower() for word in _WORD.findall(unicodedata.normalize("NFC", text))]
    return any(map(_is_foreign, words)) or len(_weak_words.intersection(words)) >= 2


def _is_foreign(word: str) -> bool:
    if word in _strong_words:
        return True
    if word in _loan_words:
        return False
    letters = [character for character in word if not character.isascii() and character not in _UNITS]
    # One letter alone is a symbol, unless it is a word by itself.
    return bool(letters) and (len(word) > 1 or unicodedata.name(letters[0], "").startswith("CJK"))
