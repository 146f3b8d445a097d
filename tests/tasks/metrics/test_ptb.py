import json

import pytest

from pixelmill.tasks.metrics.ptb import tokenize_captions


def tokens(text, following=""):
    return tokenize_captions([text, following])[0]


def test_every_caption_of_coco_val2017_is_tokenised_as_by_the_original(data):
    path = data / "coco_captions_val2017" / "expected" / "ptb_tokenized_25014.json"
    rows = json.loads(path.read_text())
    found = tokenize_captions([row["caption"] for row in rows])
    different = [
        row["caption"] for row, ours in zip(rows, found, strict=True) if ours != row["ptb"]
    ]
    assert len(rows) == 25_014
    assert different == []


def test_a_token_count_that_coco_caption_published(data):
    name = "captions_val2014_fakecap_results.coco-caption.json"
    rows = json.loads((data / "cocoapi_fake100" / name).read_text())
    found = tokenize_captions([row["caption"] for row in rows])
    assert sum(len(caption.split()) for caption in found) == 9893


# What Stanford's tokenizer (CoreNLP 3.4.1, -preserveLines -lowerCase) gives for made-up text,
# less coco-caption's punctuation.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, a cat; and (two) birds!", "a dog a cat and -lrb- two -rrb- birds"),
        ("don't can't won't isn't ain't", "do n't ca n't wo n't is n't ai n't"),
        ("I'm she'll they've we're he'd it's", "i 'm she 'll they 've we 're he 'd it 's"),
        ("SOMEONE'S dogs' JAMES'S", "someone 's dogs james 's"),
        ("cannot gonna gotta wanna 'tis", "can not gon na got ta wan na 't is"),
        ("rock 'n' roll, o'clock, O'Brien, ma'am", "rock 'n' roll o'clock o'brien ma'am"),
        ("y'all, 'em, 'cause, the '90s, 80's", "y' all 'em 'cause the '90s 80 's"),
        ("hors d'oeuvres in Ho'ohu", "hors d'oeuvres in ho'ohu"),
        ("St. Patrick, Dr. Who and Mr. X, etc.", "st. patrick dr. who and mr. x etc."),
        ("on Sunset Blvd.", "on sunset blvd."),
        ("a mass. and Mass. Ave.", "a mass and mass. ave."),
        ("No. 5 and no. and Fig. 4", "no. 5 and no and fig. 4"),
        ("U.S. flag, U.S.A flag, t.v. on", "u.s. flag u.s.a flag t.v. on"),
        ("at 5 p.m. or 5:54pm or 10pm.", "at 5 p.m. or 5:54 pm or 10pm"),
        ("a river.A group wings.l", "a river.a group wings.l"),
        ("wait... what.. hm....", "wait what hm"),
        ("well--known, multi- tiered, x-ray", "well known multi tiered x-ray"),
        ("1/2 cup, 22 3/4 st. and 50/50", "1/2 cup 22\u00a03/4 st. and 50/50"),
        ("11.01.2009 23:58, 10-29-2011, 1,000.5", "11.01.2009 23:58 10-29-2011 1,000.5"),
        ("$5.00, 50%, #41, #tag, C++", "$ 5.00 50 % # 41 #tag c++"),
        ("AT&T and R&B, a & b, a&b", "at&t and r&b a & b a & b"),
        ("mirror/cabinet or elephant/", "mirror/cabinet or elephant /"),
        ("yes!! really?! a ] b", "yes !! really ?! a -rsb- b"),
        ("“curly” ‘quotes’ it’s – — …", "curly quotes it 's"),  # noqa: RUF001
        ("www.a.com and b@c.org", "www.a.com and b@c.org"),
        ("café naïve 日本", "café naïve 日本"),
        ("", ""),
        ("  . ,  ", ""),
        ("line\nbreak", "line break"),
    ],
)
def test_rules(text, expected):
    assert tokens(text) == expected


def test_an_initial_at_the_end_depends_on_the_next_caption():
    assert tokens("on 12th Ave S.", "A street") == "on 12th ave s"
    assert tokens("on 12th Ave S.", "a street") == "on 12th ave s."
    assert tokens("W. Centre St") == "w. centre st"
    assert tokens("a person I. A jacket") == "a person i a jacket"
