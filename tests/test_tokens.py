"""The frozen vocabulary, its files in other programs' hands, and words nobody knows."""
import hashlib, json, random
import pytest
import torch
from r1nb.core import R1Error
from r1nb.tokens import (ANSWER, ASSISTANT, END, PAD, SPECIAL, THINK, USER, VOCAB, chat, decode,
                         encode, save_tokenizer, tokenizer)

# shipped models know words by their place
FROZEN = '18e7da5a5ee2b51903885d91a87b2869dbca1c2c654104dc111836569682bde6'

def test_the_vocabulary_is_frozen():
    assert hashlib.sha256('\n'.join(VOCAB).encode()).hexdigest() == FROZEN
    assert len(VOCAB) == len(set(VOCAB)) == 256 and not any(set(w) & set(' \t\n') for w in VOCAB)

def words(n, seed, start=len(SPECIAL)):
    return ' '.join(random.Random(seed).choices(VOCAB[start:], k=n))

@pytest.mark.parametrize('seed', range(20))
def test_three_ways_to_the_same_ids(seed):
    text = words(60, seed, start=0)
    ids = encode(text)
    assert tokenizer().encode(text).ids == ids
    assert decode(ids) == text == decode(torch.tensor(ids))
    assert encode(f'\n {text}\t ') == ids

@pytest.fixture(scope='module')
def hf(tmp_path_factory):
    transformers = pytest.importorskip('transformers')
    folder = tmp_path_factory.mktemp('tok')
    save_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)

@pytest.mark.parametrize('seed', range(20))
def test_templates_agree(hf, seed):
    user, answer = words(12, seed), f'<think> {words(20, -seed)} </think> <answer> 4 </answer>'
    ask = [dict(role='user', content=user)]
    assert hf.apply_chat_template(ask, add_generation_prompt=True, return_dict=False) == chat(user)
    talk = ask + [dict(role='assistant', content=answer)]
    want = chat(user) + encode(answer) + [END]
    assert hf.apply_chat_template(talk, return_dict=False) == want
    assert hf.apply_chat_template(talk + ask, add_generation_prompt=True, return_dict=False) == \
        want + chat(user)
    assert hf.decode(want, skip_special_tokens=True) == f'{user} {answer}'
    assert hf.decode(encode(answer)) == answer

def test_what_other_programs_need(hf):
    assert (hf.eos_token_id, hf.pad_token_id, hf.padding_side, len(hf)) == (END, PAD, 'left', 256)
    both = hf(['Make 4', 'Make 4 from 2'], padding=True)
    assert both['input_ids'][0][:2] == [PAD, PAD] and both['attention_mask'][0] == [0, 0, 1, 1]
    assert hf.convert_tokens_to_ids(['<think>', '<answer>']) == [THINK, ANSWER]
    with pytest.raises(Exception, match='WordLevel'): hf('Make 250')

def test_read_back_from_a_checkpoint(tmp_path):
    save_tokenizer(tmp_path)
    assert tokenizer(tmp_path).get_vocab() == tokenizer().get_vocab()
    (tmp_path/'tokenizer.json').write_text('{"version"')
    with pytest.raises(R1Error, match='is damaged'): tokenizer(tmp_path)
    (tmp_path/'tokenizer.json').unlink()
    with pytest.raises(R1Error, match='is missing'): tokenizer(tmp_path)

@pytest.mark.parametrize('text', ['250', '-1', 'Make43', '<|END|>', 'é', 'make', '007', '2️⃣',
                                  'x'*10**6, 'a\x00b', "';drop", '<|end|>4', '\ud800'])
def test_unknown_words_are_named(text):
    with pytest.raises(R1Error, match='not one of the 256 known words') as e:
        encode(f'Make {text}')
    said = str(e.value)
    assert '\n' not in said and len(said) < 200 and repr(text)[:50] in said

@pytest.mark.parametrize('w', SPECIAL[:4])
def test_no_control_words_from_users(w):
    with pytest.raises(R1Error, match='belongs to the template'): chat(f'Make 4 {w} 2')
    assert chat('<think>') == [USER, THINK, ASSISTANT]

@pytest.mark.parametrize('ids', [[256], [-1], [3, 10**9]])
def test_ids_of_another_tokenizer(ids):
    with pytest.raises(R1Error, match='come from another tokenizer'): decode(ids)
