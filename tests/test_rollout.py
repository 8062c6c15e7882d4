"""Traces: hostile text, hostile files, and the programs that read ours."""
import errno, json, os, random
from pathlib import Path
import pytest
import torch
import r1nb
from r1nb.core import R1Error
from r1nb.model import R1Config, R1Model
from r1nb.ranks import Ranks
from r1nb.rollout import Trace, ask, ask_all, judge, read_traces, record, write_traces
from r1nb.tasks import Problem, countdown
from r1nb.tokens import END, VOCAB

TINY = R1Config(hidden_size=32, num_hidden_layers=2, intermediate_size=32, n_routed_experts=4,
                moe_intermediate_size=16, num_attention_heads=2, kv_lora_rank=8,
                qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, max_position_embeddings=64)

@pytest.fixture(scope='module')
def model():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return R1Model(TINY).eval()

def some(n, seed=0):
    "Traces of random words, some of them well formed."
    rng, out = random.Random(seed), []
    for p in countdown(n, seed):
        words = rng.choices(VOCAB[2:], k=rng.randrange(0, 30))
        right = f'<think> I guess. </think> <answer> {p.gold} </answer>'
        if rng.random() < .5: words = right.split()
        ids = [VOCAB.index(w) for w in words] + [END]*(rng.random() < .7)
        out.append(judge(p, ids, [-.5]*len(ids), ids[-1:] == [END]))
    return out

rows_of = lambda traces: [record(t, 'nano, seed 0', 'MIT') for t in traces]


# ---- asking ----------------------------------------------------------------------------------
def test_groups_stay_in_order(model):
    problems = countdown(5, 3)
    traces = ask(model, problems, G=3, max_new=8, batch=4)
    assert [t.problem for t in traces] == [p.id for p in problems for _ in range(3)]
    for t in traces:
        assert len(t.ids) == len(t.lp) <= 8 and t.done == (t.ids[-1] == END)
        assert '<|end|>' not in t.response or not t.done

def test_same_id_other_prompt(model):
    a, b = (Problem('twin', f'Make {n} from 2 3 .', '2 + 3', 'countdown',
                    dict(numbers=[2, 3], target=n, exact=True)) for n in (5, 6))
    assert [t.prompt for t in ask(model, [a, b], max_new=2)] == [a.prompt, b.prompt]

def test_edges(model):
    assert ask(model, []) == []
    ask(model, countdown(1, 0), max_new=1, seed=2**62)
    with pytest.raises(R1Error, match='context'): ask(model, countdown(1, 0), max_new=64)
    with pytest.raises(R1Error, match='batches of 0'): ask(model, countdown(1, 0), batch=0)
    with pytest.raises(R1Error, match='zebra'):
        ask(model, [Problem('z', 'Make zebra .', '', 'countdown', {})])

def test_two_ranks_give_whole_groups_in_order(model):
    problems, sent = countdown(5, 7), {}
    class Rank(Ranks):
        def gather(self, items):
            sent[self.rank] = json.loads(json.dumps(items))
            return [g for r in sorted(sent) for g in sent[r]]
    ask_all(model, problems, Rank(0, 2), G=2, max_new=6)  # its share is kept for rank 1
    traces = ask_all(model, problems, Rank(1, 2), G=2, max_new=6)
    assert [t.problem for t in traces] == [p.id for p in problems for _ in range(2)]
    alone = ask(model, problems[1::2], G=2, max_new=6, seed=1)
    assert [t.ids for t in traces if t.problem == problems[1].id] == [t.ids for t in alone[:2]]


# ---- rows ------------------------------------------------------------------------------------
def test_every_response_becomes_a_row():
    rng = random.Random(2)
    tags = ['<think>', '</think>', '<answer>', '</answer>', ' ', '\n', '"', '\\', '\u2028', '1 + 2']
    for _ in range(300):
        text = ''.join(rng.choices(tags, k=rng.randrange(9)))
        t = Trace('p', 'q', text, [1], [0.], True, 0., 0., 'why')
        row = record(t, 'x', 'MIT')
        assert row['response'] == text and not row['kept'] and row['verdict']['reason'] == 'why'
        assert row['reasoning'] == text or text.count('<think>') == 1
        assert json.loads(json.dumps(row)) == row

def test_kept_is_all_filters():
    t = some(20)[0]
    assert record(t, 'x', 'MIT', {})['kept'] and record(t, 'x', 'MIT', {'a': 1})['kept']
    assert not record(t, 'x', 'MIT', {'a': 1, 'b': 0})['kept']


# ---- files -----------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['t.jsonl', 't.parquet'])
def test_there_and_back(tmp_path, name):
    if name.endswith('parquet'): pytest.importorskip('pyarrow')
    rows = rows_of(some(60))
    rows[3]['response'] = 'a\nb "ü" \u2028 \\ 太高.'
    rows[4]['token_ids'] = None
    path = write_traces(tmp_path/name, iter(rows))
    assert list(read_traces(path)) == rows
    assert list(read_traces(write_traces(tmp_path/('none' + name[1:]), rows[:0]))) == []

@pytest.mark.parametrize('kind, name', [('json', 't.jsonl'), ('parquet', 't.parquet')])
def test_datasets_opens_it(tmp_path, kind, name):
    datasets = pytest.importorskip('datasets')
    rows = rows_of(some(300))
    path = write_traces(tmp_path/name, rows)
    data = datasets.load_dataset(kind, data_files=str(path), split='train',
                                 cache_dir=str(tmp_path/'cache'))
    assert data[:]['token_ids'] == [r['token_ids'] for r in rows]
    assert data[7]['verdict'] == rows[7]['verdict'] and data[7]['filters'] == rows[7]['filters']
    assert len(data.filter(lambda r: r['kept'])) == sum(r['kept'] for r in rows)

def test_damage_is_named_by_line(tmp_path):
    rows, path, rng = rows_of(some(12)), tmp_path/'t.jsonl', random.Random(4)
    data = write_traces(path, rows).read_bytes()
    for _ in range(300):
        hurt = bytearray(data)
        for _ in range(rng.randrange(1, 4)): hurt[rng.randrange(len(hurt))] = rng.randrange(256)
        path.write_bytes(hurt[:rng.randrange(len(hurt))])
        got = []
        try:
            for row in read_traces(path): got.append(row)
        except R1Error as e: assert str(e).startswith(f'{path}:{len(got) + 1}: '), e
    deep, long = b'['*100_000, b'{"problem": ' + b'9'*5000 + b'}'
    for line in (b'', b'null', b'[]', b'3', deep, long, b'\xff\xfe', b'{"kept": NaN}'):
        path.write_bytes(line + b'\n')
        with pytest.raises(R1Error, match='t.jsonl:1: '): list(read_traces(path))

@pytest.mark.parametrize('field, value', [
    ('kept', None), ('token_ids', [1, True]), ('verdict', []), ('token_ids', [1.5]),
    ('token_ids', '12'), ('filters', 0)])
def test_wrong_types_are_named(tmp_path, field, value):
    row = dict(rows_of(some(1))[0], **{field: value})
    with pytest.raises(R1Error, match='token id|' + field):
        list(read_traces(write_traces(tmp_path/'t.jsonl', [row])))

def test_reading_streams(tmp_path):
    path = write_traces(tmp_path/'t.jsonl', rows_of(some(3)))
    path.write_bytes(path.read_bytes() + b'{torn')
    rows = read_traces(path)
    assert [next(rows)['problem'] for _ in range(3)]
    with pytest.raises(R1Error, match='t.jsonl:4: '): next(rows)

def test_damaged_parquet(tmp_path):
    pytest.importorskip('pyarrow')
    path = write_traces(tmp_path/'t.parquet', rows_of(some(5)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(R1Error, match='t.parquet is damaged'): list(read_traces(path))

def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_traces(tmp_path/'t.jsonl', rows_of(some(3)))
    before = path.read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(R1Error, match='disk is full'): write_traces(path, rows_of(some(9)))
    assert path.read_bytes() == before

def test_light_import():
    text = (Path(r1nb.__file__).parent/'rollout.py').read_text()
    assert 'import datasets' not in text and 'import pyarrow' not in text
