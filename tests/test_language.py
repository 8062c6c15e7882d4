"What would bore a reader of room 45: odd scripts, hostile answers, a base left as it was."
import random, string
from dataclasses import replace
import pytest, torch
from r1nb.language import (CHINESE, MIXING, LanguageConfig, bilingual, language_share, mixed, speak,
                           thought_of, tongue, verify_language, words_by_script)
from r1nb.model import R1Config, R1Model
from r1nb.r1_zero import ZeroConfig
from r1nb.rollout import Trace
from r1nb.tasks import Problem, countdown
from r1nb.tokens import ASSISTANT, END, VOCAB, decode
from r1nb.verify import verify

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=48, moe_intermediate_size=16,
                initializer_range=.05)
P = countdown(20, 0)


@pytest.mark.parametrize('text, words', [
    ('', {}), ('12 + 3 = 15 , ( 4 ) .', {}), ('_ __ \x00 \ud800', {}),
    ('Wait,wait', {'LATIN': 2}), ('Größe naïve', {'LATIN': 2}), ('x² ½', {'LATIN': 1}),
    ('我们 试试 one', {'CJK': 4, 'LATIN': 1}), ('abcдеf', {'LATIN': 2, 'CYRILLIC': 1}),
    ('한국어 말', {'HANGUL': 2}), ('カタカナ', {'KATAKANA': 4}),
    ('αβγ שלום', {'GREEK': 1, 'HEBREW': 1})])
def test_words_of_many_scripts(text, words): assert dict(words_by_script(text)) == words


def test_any_text_gives_a_share_or_none():
    rng, letters = random.Random(0), string.printable + '试不太高低对ßЖ한' + '\u200b\ufeff'
    for _ in range(3000):
        text = ''.join(rng.choices(letters, k=rng.randint(0, 60)))
        share = language_share(text)
        assert share is None or 0 <= share <= 1
        v = verify_language(P[0], text)
        assert replace(v, language=None) == verify(P[0], text) and 0 <= v.language <= 1


def test_the_target_is_the_language_of_the_prompt():
    meta = {'numbers': [20, 4], 'target': 24}
    chinese = Problem('c', '用 20 4 凑 24', '20 + 4', 'countdown', meta)
    said = '<think> 试 Try 20 + 4 . 对! </think> <answer> 20 + 4 </answer>'
    assert verify_language(chinese, said).language == 2/3
    assert verify_language(P[0], said).language == 1/3
    bare = Problem('n', '20 4', '', 'countdown', meta)
    assert verify_language(bare, said).language == 0.


@pytest.mark.parametrize('said, thought', [
    ('<think> a </think> b', ' a '), ('a </think> b', 'a '), ('<think> a', ' a'), ('', '')])
def test_the_thought_of_broken_answers(said, thought): assert thought_of(said) == thought


def test_all_or_nothing_of_the_phrases_change():
    doc = 'Try 2 + 2 = 4 . No, too high. Try 2 = 2 . No, too low. Check: 2 . Wait, no. Yes!'
    assert mixed(random.Random(0), doc, 0.) == doc
    done = mixed(random.Random(0), doc, 1.)
    assert not any(w in done for w in ('Try', 'No,', 'too', 'Yes!')) and 'Check:' in done
    assert set(CHINESE.values()) <= set(VOCAB)


def test_documents_repeat_and_split_after_the_prompt():
    a, b = bilingual(50, 3), bilingual(50, 3)
    assert a == b != bilingual(50, 4)
    assert all(p[-1] == ASSISTANT and r[-1] == END for p, r in a)
    english = bilingual(50, 3, mixing=dict.fromkeys(MIXING, 0.))
    assert all(words_by_script(decode(r))['CJK'] == 0 for _, r in english)


def test_a_base_is_left_as_it_was():
    torch.manual_seed(0)
    base = R1Model(TINY).eval()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    both = speak(base, docs=40)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert any(not torch.equal(v, before[k]) for k, v in both.state_dict().items())


def traces():
    rng, out = random.Random(1), []
    for p in P:
        word = rng.choice(['Try', '试', 'Try 试', ''])
        text = f'<think> {word} </think> <answer> {rng.choice([p.gold, "1"])} </answer>'
        v = verify(p, text)
        out.append(Trace(p.id, p.prompt, text, [], [], True, v.answer, v.format, v.reason))
    return out


def test_pay_adds_the_share_and_the_lottery_keeps_the_sum():
    ts, rng = traces(), random.Random(2)
    plain = ZeroConfig().pay(ts, rng)
    assert LanguageConfig(language=0.).pay(ts, rng) == plain
    paid, lots = LanguageConfig().pay(ts, rng), LanguageConfig(by_lot=True).pay(ts, rng)
    share = [language_share(thought_of(t.response)) or 0. for t in ts]
    assert paid == pytest.approx([a + b for a, b in zip(plain, share)])
    assert sum(lots) == pytest.approx(sum(paid)) and lots != pytest.approx(paid)


def test_tongue_of_nobody():
    assert tongue([]) == dict(share=0., answer=0., pure=0.)
    assert tongue(traces())['pure'] < 1
