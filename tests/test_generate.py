"""Runs of many teachers: faults, kills, money, files."""
import json, os, random, signal, subprocess, sys, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import pytest
from fake_teacher import Fake, sums
from r1nb.core import R1Error
from r1nb.endpoint import Busy, Completion, Refused
from r1nb.ask import Plan, Purse, call_seed, calls, most_usd, pause
from r1nb.generate import check_run, generate, survey
from r1nb.tasks import Problem
from r1nb.traces import (Journal, Spans, read_journal, read_traces, run_rows, seal, shards,
                         trace_row, write_traces)
from r1nb.verify import Verdict

def what(rows):
    return Counter((r['teacher'], r['problem'], r['source']['sample'], r['response'], r['kept'])
                   for r in rows)
FAST = dict(pause=.0005, tries=60, shard_rows=64)

# ---- a program that is killed -----------------------------------------------------------------
CHILD = '''
import random, sys
sys.path[:0] = [{tests!r}]
from fake_teacher import Fake, sums
from r1nb.ask import Plan
from r1nb.generate import generate
teachers = [Fake('a', batch=1, workers=8, faults=.2, pause=.002),
            Fake('b', batch=7, workers=3, faults=.2, pause=.004)]
print('BEGIN', flush=True)
generate(sums({n}), teachers, {folder!r}, Plan(n=4, **{fast}), resume=True)
'''

def killed(folder, n, seed, most=200):
    "Run the program again and again, killed each time after a random while, until it ends."
    rng = random.Random(seed)
    text = CHILD.format(tests=str(Path(__file__).parent), folder=str(folder), n=n,
                        fast=FAST)
    for kills in range(most):
        p = subprocess.Popen([sys.executable, '-c', text], stdout=subprocess.PIPE, text=True)
        assert p.stdout.readline() == 'BEGIN\n'
        try: p.communicate(timeout=rng.uniform(.02, .2)*(1 + kills/4))
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL); p.communicate(); continue
        assert p.returncode == 0
        return kills
    raise AssertionError('never ended')

def test_killed_at_random_moments(tmp_path):
    plain = generate(sums(300), [Fake('a'), Fake('b', batch=7, workers=3)], tmp_path/'plain',
                     Plan(n=4, **FAST))
    kills = killed(tmp_path/'killed', 300, seed=1)
    found = check_run(tmp_path/'killed')
    assert plain['complete'] and found['complete'] and found['rows'] == 2400, found
    assert what(run_rows(tmp_path/'killed')) == what(run_rows(tmp_path/'plain'))
    assert kills >= 2, 'too fast to be killed'

def test_killed_as_it_seals(tmp_path, monkeypatch):
    "Die after the shards and before the new journal, and in the middle of a shard."
    import r1nb.traces as traces
    for k in range(6):
        folder, left = tmp_path/f'r{k}', [k]
        real = traces.write_atomic
        def dies(path, data):
            if 'journal' in Path(path).name and Path(path).exists() or 'traces' in Path(path).name:
                left[0] -= 1
                if left[0] == -1: raise KeyboardInterrupt
            return real(path, data)
        monkeypatch.setattr(traces, 'write_atomic', dies)
        with pytest.raises(KeyboardInterrupt): generate(sums(100), [Fake()], folder, Plan(**FAST))
        found = check_run(folder)
        assert found['repeated'] == 0
        monkeypatch.setattr(traces, 'write_atomic', real)
        assert generate(sums(100), [Fake()], folder, Plan(**FAST), resume=True)['complete']
        assert check_run(folder)['complete'] and check_run(folder)['rows'] == 400
        assert {len(list(read_traces(p))) for p in shards(folder)[:-1]} == {64}

# ---- faults ----------------------------------------------------------------------------------
def test_put_aside_and_asked_again(tmp_path):
    down = Fake('down', workers=2, broken=Busy('503'))
    up = Fake('up')
    r = generate(sums(50), [down, up], tmp_path/'r', Plan(tries=3, pause=.001, patience=4))
    assert not r['complete'] and r['teachers']['up']['rows'] == 200
    t = r['teachers']['down']
    assert 4 <= t['put_aside'] <= 8 and t['stopped'] == '503'
    aside = [json.loads(l) for l in (tmp_path/'r'/'failures.jsonl').read_text().splitlines()]
    assert {f['why'] for f in aside} == {'503'} and {f['teacher'] for f in aside} == {'down'}
    down.broken = None
    r = generate(sums(50), [down, up], tmp_path/'r', Plan(tries=3, pause=.001), resume=True)
    assert r['complete'] and check_run(tmp_path/'r')['complete']
    assert not (tmp_path/'r'/'failures.jsonl').exists()
    assert generate(sums(50), [down, up], tmp_path/'r', resume=True) == r

def test_one_bad_prompt_in_a_call(tmp_path):
    problems = sums(40)
    problems[13] = Problem('p13', 'zebra 1 + 1', '2', 'arithmetic')
    r = generate(problems, [Fake(batch=16)], tmp_path/'r', Plan(n=2))
    rows = list(run_rows(tmp_path/'r'))
    bad = [x for x in rows if x['problem'] == 'p13']
    assert r['complete'] and len(rows) == 80 and len(bad) == 2
    assert not any(x['kept'] for x in bad) and 'zebra' in bad[0]['verdict']['reason']
    assert sum(x['response'] == '' for x in rows) == 2

def test_a_refusal_of_the_key_asks_once_a_call(tmp_path):
    t = Fake(batch=16, workers=1, broken=Refused('status 401', 401))
    r = generate(sums(100), [t], tmp_path/'r', Plan(patience=3))
    assert t.asked.total() in (3, 4) and r['teachers']['fake']['stopped'] == 'status 401'

def test_the_servers_wait_is_kept(tmp_path):
    t, begun = Fake(workers=4, faults=1., wait=.1), time.monotonic()
    generate(sums(8), [t], tmp_path/'r', Plan(tries=3, pause=.001, patience=100))
    assert time.monotonic() - begun >= .2*2 and t.asked.total() == 24

def test_pauses_double_and_differ():
    assert [pause(k, .5, lambda: 1.) for k in (1, 2, 3, 10)] == [.5, 1., 2., 60.]
    assert len({pause(4, .5) for _ in range(50)}) == 50

def test_a_wrong_number_of_answers_is_a_fault(tmp_path):
    class Short(Fake):
        def ask(self, prompts, n, **kw): return super().ask(prompts, n - 1, **kw)
    r = generate(sums(4), [Short()], tmp_path/'r', Plan(tries=2, pause=.001, patience=1))
    assert not r['complete'] and r['teachers']['fake']['rows'] == 0

def test_a_mistake_of_ours_is_raised(tmp_path):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        generate(sums(40), [Fake(broken=ZeroDivisionError())], tmp_path/'r')
    with pytest.raises(KeyError):
        generate(sums(40), [Fake()], tmp_path/'r', resume=True,
                 filters={'x': lambda r, _: r['none']})
    for _ in range(100):
        if threading.active_count() <= before: break
        time.sleep(.05)
    assert threading.active_count() <= before, 'a worker never went home'
    assert generate(sums(40), [Fake()], tmp_path/'r', resume=True)['complete']

def server(faults):
    "Chat completions on loopback: adds two numbers, one answer a request, fails now and then."
    seen = Counter()
    class Chat(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def log_message(self, *_): pass
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            status = random.choice([429, 500, 503, 0]) if random.random() < faults else 200
            seen[status] += 1
            if not status: self.close_connection = True; return
            a, b = map(int, body['messages'][-1]['content'].split()[1::2])
            said = dict(content=f'<answer> {a + b + (body["seed"] % 3 == 0)} </answer>',
                        reasoning_content='easy')
            data = json.dumps(dict(choices=[dict(message=said, finish_reason='stop')], usage=dict(
                prompt_tokens=9, completion_tokens=7))).encode()
            self.send_response(status)
            self.send_header('Content-Length', str(len(data)))
            if status == 429: self.send_header('Retry-After', '0')
            self.end_headers(); self.wfile.write(data)
    at = ThreadingHTTPServer(('127.0.0.1', 0), Chat)
    at.daemon_threads = True
    threading.Thread(target=at.serve_forever, daemon=True).start()
    return at, seen

def test_over_http(tmp_path):
    from r1nb.teacher import open_teacher
    at, seen = server(.2)
    try:
        t = open_teacher('http', 'adder', url=f'http://127.0.0.1:{at.server_port}/v1', workers=6,
                         licence='MIT', usd_in=1., usd_out=2.)
        r = generate(sums(60), [t], tmp_path/'r', Plan(n=3, tries=40, pause=.001, max_new=20))
    finally: at.shutdown(); at.server_close()
    rows, found = list(run_rows(tmp_path/'r')), check_run(tmp_path/'r')
    assert found['complete'] and len(rows) == 180 and r['teachers']['adder']['faults'] > 10
    assert 0 < found['kept'] < 180 and all(x['reasoning'] == 'easy' for x in rows)
    assert sum(x['source']['prompt_tokens'] for x in rows) >= 60*9
    assert r['teachers']['adder']['usd'] == pytest.approx(sum(
        (x['source']['prompt_tokens'] + 2*x['tokens'])/1e6 for x in rows))

def test_known_answers_in_mathematics(tmp_path):
    pytest.importorskip('math_verify')
    class Box(Fake):
        def one(self, prompt, seed, k):
            half = ('0.5', '\\frac{1}{2}', '2', '')[k]
            return Completion(f'<think> hm </think> It is \\boxed{{{half}}}.', 5, 5, True)
    problems = [Problem('h', 'Half of 1 and 0', '\\frac12', 'gsm8k')]
    generate(problems, [Box()], tmp_path/'r')
    rows = list(run_rows(tmp_path/'r'))
    assert [x['kept'] for x in rows] == [True, True, False, False]
    assert rows[0]['reasoning'] == 'hm' and rows[0]['answer'].startswith('It is')

# ---- money -----------------------------------------------------------------------------------
def test_budget_is_never_passed(tmp_path):
    for seed, budget in enumerate((0., .0001, .003, .0071)):
        t = Fake(batch=4, usd_in=2., usd_out=9., pause=.002)
        plan = Plan(seed=seed, max_new=30, budget_usd=budget)
        r = generate(sums(100), [t, Fake('free')], tmp_path/f'r{seed}', plan)
        paid = r['teachers']['fake']['usd']
        worst = most_usd(t, plan, 4, 4*20)
        assert paid <= budget and (budget < worst or paid > budget - 8*worst)
        assert r['teachers']['free']['rows'] == 400 and not r['complete']
        rows = [x for x in run_rows(tmp_path/f'r{seed}') if x['teacher'] == 'fake']
        assert abs(sum(x['usd'] for x in rows) - paid) < 1e-9
    r = generate(sums(100), [t, Fake('free')], tmp_path/'r3', Plan(seed=3, max_new=30), resume=True)
    assert r['complete']

def test_purse_waits_for_those_in_flight():
    purse, stop, got = Purse(1.), threading.Event(), []
    assert purse.take(.7, stop)
    late = threading.Thread(target=lambda: got.append(purse.take(.6, stop)))
    late.start(); time.sleep(.05)
    assert not got
    purse.settle(.7, .1); late.join(2)
    assert got == [True] and not purse.take(2., stop) if not purse.out else got == [True]
    purse.settle(.6, .6)
    assert abs(purse.spent - .7) < 1e-12 and not purse.take(.31, stop) and purse.take(.3, stop)

def test_what_a_kill_may_have_paid_for_nothing(tmp_path):
    folder = tmp_path/'r'
    with Journal(folder) as j:
        j.write(dict(event='begin', teacher='fake', block=0, usd=.25))
        j.write(dict(event='begin', teacher='fake', block=1, usd=.5), sync=False)
    with Journal(folder) as j:
        t = j.tally.teachers['fake']
        assert (t['lost'], t['lost_usd']) == (2, .75) and not j.tally.open
    with Journal(folder) as j: assert j.tally.teachers['fake']['lost'] == 2
    r = generate(sums(3), [Fake(usd_out=1.)], folder, Plan(budget_usd=.7501, max_new=30))
    assert r['teachers']['fake']['lost_usd'] == .75 and not r['complete']

# ---- the same rows ---------------------------------------------------------------------------
def test_config_decides(tmp_path):
    generate(sums(9), [Fake()], tmp_path/'r')
    for how in (dict(problems=sums(8)), dict(plan=Plan(seed=1)), dict(plan=Plan(n=5)),
                dict(teachers=[Fake(usd_out=1.)]), dict(teachers=[Fake('other')])):
        with pytest.raises(R1Error, match='was .* and is now'):
            generate(**dict(dict(problems=sums(9), teachers=[Fake()], folder=tmp_path/'r',
                                 resume=True), **how))
    with pytest.raises(R1Error, match='already holds'): generate(sums(9), [Fake()], tmp_path/'r')
    with pytest.raises(R1Error, match='only once'):
        generate(iter(sums(9)), [Fake()], tmp_path/'s')
    with pytest.raises(R1Error, match='two teachers'): generate(sums(9), [Fake()]*2, tmp_path/'s')
    with pytest.raises(R1Error, match='no problems'): generate([], [Fake()], tmp_path/'s')
    assert not (tmp_path/'s').exists()

def test_seeds_do_not_depend_on_the_day():
    part = sums(3)
    assert call_seed(0, 'a', part) == call_seed(0, 'a', sums(3)) < 2**31
    assert len({call_seed(s, t, part[:k]) for s in (0, 1) for t in 'ab' for k in (1, 2, 3)}) == 12
    assert [len(p) for _, p in calls(sums(10), 4)] == [4, 4, 2]

def test_one_process_a_folder(tmp_path):
    with Journal(tmp_path):
        with pytest.raises(R1Error, match='in use by another'): Journal(tmp_path)
    Journal(tmp_path).close()

def test_back_pressure(tmp_path):
    "A slow judge slows the teachers: never more than two calls a worker are not on disk."
    t, open_calls = Fake(workers=3), []
    def slow(problem, text):
        time.sleep(.002)
        return Verdict(1., 1.)
    generate(sums(60), [t], tmp_path/'r', judge=slow,
             watch=lambda tally, lanes, purse: open_calls.append(len(tally.open)))
    assert max(open_calls) <= 6

# ---- files -----------------------------------------------------------------------------------
def test_spans_are_a_set():
    rng = random.Random(0)
    for _ in range(200):
        want, spans = set(), Spans()
        for _ in range(40):
            i = rng.randrange(30); want.add(i); spans.add(i)
            assert [i in spans for i in range(31)] == [i in want for i in range(31)]
            assert len(spans) == len(want) and Spans(spans.runs).runs == spans.runs
        assert all(a[1] < b[0] for a, b in zip(spans.runs, spans.runs[1:]))

def test_a_journal_torn_at_any_byte(tmp_path):
    rows = [trace_row(f'p{i}', 'q', 'é', Verdict(1., 1.), tokens=1, usd=.5) for i in range(4)]
    with Journal(tmp_path/'a', 3) as j:
        for b in range(2):
            j.write(dict(event='begin', teacher='t', block=b, usd=1.))
            j.write(dict(event='rows', teacher='t', block=b, rows=rows[2*b:2*b + 2]))
            if j.tally.loose >= 3: seal(j)
        assert j.tally.loose == 1 and j.tally.shard == 1
    with Journal(tmp_path/'b', 3) as j:
        for b in range(2):
            j.write(dict(event='begin', teacher='t', block=b, usd=1.))
            j.write(dict(event='rows', teacher='t', block=b, rows=rows[2*b:2*b + 2]))
    data = (tmp_path/'b'/'journal.jsonl').read_bytes()
    first = data.index(b'\n') + 1
    for cut in range(first, len(data), 7):
        (tmp_path/'b'/'journal.jsonl').write_bytes(data[:cut])
        with Journal(tmp_path/'b', 3) as j:
            t = j.tally.of('t')
            done = len(t['done'])
            assert t['rows'] == 2*done == j.tally.loose and t['usd'] == done
            assert done + t['lost'] == sum(e['event'] == 'begin' for e, _ in
                                           read_journal(tmp_path/'b'/'journal.jsonl'))
        assert sum(1 for _ in run_rows(tmp_path/'b')) == 2*done
    (tmp_path/'b'/'journal.jsonl').write_bytes(data[:first] + b'{}\n')
    with pytest.raises(R1Error, match='journal.jsonl:2: not an entry'): Journal(tmp_path/'b')

def test_disk_full(tmp_path, monkeypatch):
    j = Journal(tmp_path)
    size = j.path.stat().st_size
    class Full:
        def __getattr__(self, k): return getattr(j2, k)
        def write(self, data): j2.write(data[:5]); raise OSError(28, 'No space left on device')
    j2, j.file = j.file, Full()
    with pytest.raises(R1Error, match='disk is full'):
        j.write(dict(event='begin', teacher='t', block=0, usd=0.))
    assert j.path.stat().st_size == size and not j.tally.open
    j.file = j2; j.close()

@pytest.mark.parametrize('kind', ['parquet', 'json'])
def test_datasets_opens_all_files(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip('datasets')
    if kind == 'json': monkeypatch.setattr('r1nb.traces.find_spec', lambda name: None)
    problems = sums(90) + [Problem(f'q{i}', f'Say {i} and {i}', '', '') for i in range(30)]
    generate(problems, [Fake('a'), Fake('b', batch=7, licence='unknown')], tmp_path/'r',
             Plan(**FAST, system='Be brief'))
    files = [str(p) for p in shards(tmp_path/'r')]
    assert len(files) == 15 and all(f.endswith(dict(json='jsonl').get(kind, kind)) for f in files)
    data = datasets.load_dataset(kind, data_files=files, split='train',
                                 cache_dir=str(tmp_path/'cache'))
    rows = list(run_rows(tmp_path/'r'))
    assert len(data) == len(rows) == 960
    assert data[:]['source'] == [r['source'] for r in rows]
    assert data[:]['verdict'] == [r['verdict'] for r in rows]
    assert sum(data[:]['kept']) == sum(r['kept'] for r in rows)
    assert {r['verdict']['answer'] for r in rows if r['problem'][0] == 'q'} == {None}

def test_columns_lose_nothing(tmp_path):
    pytest.importorskip('pyarrow')
    v = Verdict(1., 1.)
    rows = [trace_row('a', 'q', 'x', v, filters={}),
            trace_row('b', 'q', 'x', v, filters=dict(short=True), steps=[1.5], token_ids=[2**40])]
    rows[0]['verdict']['process'] = .5
    rows[1]['source'] = dict(sheet='A7')
    got = list(read_traces(write_traces(tmp_path/'t.parquet', rows)))
    assert [r['filters'] for r in got] == [{}, dict(short=True)]
    assert got[0]['verdict']['process'] == .5 and got[1]['source']['sheet'] == 'A7'
    assert got[1]['steps'] == [1.5] and got[0]['steps'] is None and got[1]['token_ids'] == [2**40]
    plain = [trace_row('a', 'q', 'x', v, filters={})]
    assert list(read_traces(write_traces(tmp_path/'u.parquet', plain))) == plain

def test_survey_reads_everything_first():
    a, b = survey(sums(5)), survey(sums(5)[:-1] + [Problem('p4', 'Compute 4 + 4', '9', '')])
    assert a.problems == 5 and a.sha256 != b.sha256
    with pytest.raises(R1Error, match='prompt is empty'): survey([Problem('a', ' ', '', '')])
