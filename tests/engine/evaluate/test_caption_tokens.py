import pytest
from cacophony.engine.evaluate.caption_tokens import has_java, tokenize

SENTENCES = {
    "A dog barks, then a bell rings.": "a dog barks then a bell rings",
    "  People's voices; a man SHOUTS!  ": "people 's voices a man shouts",
    "It doesn't stop: a high-pitched hum...": "it does n't stop a high-pitched hum",
    "Rain, heavy, falls - and falls?": "rain heavy falls and falls",
    'The "beep" of 3 timers': "the beep of 3 timers",
    "": "",
    "? !": "",
}


def test_rules_split_as_the_treebank_does():
    assert tokenize(list(SENTENCES), "rules") == list(SENTENCES.values())


@pytest.mark.skipif(not has_java(), reason="needs Java")
def test_rules_and_the_ptb_tokenizer_agree_on_captions():
    pytest.importorskip("pycocoevalcap")
    assert tokenize(list(SENTENCES), "ptb") == list(SENTENCES.values())
