"""What a run of many teachers costs and survives: memory, speed, kills, queueing, and a live run.

    python tests/measure_generate.py memory|flush|little|kills|live|exceed OUT.jsonl [--seeds 3]
    python tests/measure_generate.py merge nbs/results/generate.json OUT.jsonl ...
One JSON object a line is added to OUT.jsonl as soon as it is known; `merge` collects them.
"""
import argparse, ast, json, math, os, random, resource, shutil, signal, subprocess, sys, tempfile
import time
from collections import Counter
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import fake_teacher as fake
from r1nb.ask import Plan
from r1nb.core import hardware, mean_ci, proportion_ci, write_atomic
from r1nb.generate import check_run, generate
from r1nb.traces import run_rows, shards

HERE = Path(__file__)

def add(out, **row):
    h = hardware()
    row |= dict(files='parquet' if has('pyarrow') else 'jsonl', cpu=h['cpu'], cores=h['cores'],
                python=h['python'], torch=h['torch'])
    with open(out, 'a') as f: f.write(json.dumps(row) + '\n')
    print(json.dumps(row)[:300], flush=True)

def has(name):
    try: return version(name)
    except PackageNotFoundError: return None

def child(*args):
    r = subprocess.run([sys.executable, str(HERE), *map(str, args)], capture_output=True, text=True)
    assert not r.returncode, r.stderr[-2000:]
    return json.loads(r.stdout.splitlines()[-1])


# ---- memory and speed: a teacher that answers at once -----------------------------------------
def flood(rows, workers=4, batch=16):
    "One run of `rows` rows, in this process, problems from a file."
    from r1nb.order import ProblemFile
    folder = Path(tempfile.mkdtemp())
    with open(folder/'p.jsonl', 'w') as f:
        for p in fake.sums(rows//4, stream=True): f.write(json.dumps(vars(p)) + '\n')
    begun, cpu = time.perf_counter(), time.process_time()
    teacher = fake.Fake('fast', batch=batch, workers=workers, words=60)
    report = generate(ProblemFile(folder/'p.jsonl'), [teacher], folder/'run', Plan(n=4))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    size = sum(p.stat().st_size for p in shards(folder/'run'))
    found = check_run(folder/'run')
    assert report['complete'] and found['complete'] and found['rows'] == rows
    shutil.rmtree(folder)
    return dict(rows=rows, seconds=seconds, cpu_seconds=cpu, peak_mib=peak, mb=size/1e6,
                rows_per_second=rows/seconds, rows_per_cpu_second=rows/cpu)

def memory(out, sizes=(10_000, 50_000, 200_000, 400_000), **_):
    for rows in sizes: add(out, kind='memory', **child('flood', rows))


# ---- a flush shared by a group ----------------------------------------------------------------
def flush(out, calls=4096, **_):
    from r1nb.traces import Journal, trace_row
    from r1nb.verify import Verdict
    row = trace_row('p', 'Compute 3 + 4', '<think> easy </think> <answer> 7 </answer>',
                    Verdict(1., 1.), tokens=20, usd=0.)
    for group in (1, 2, 4, 8, 16, 64, 256, 1024):
        folder, times = Path(tempfile.mkdtemp()), []
        for t in range(5):
            with Journal(folder/str(t)) as j:
                begun = time.perf_counter()
                for i in range(0, calls, group):
                    j.write(*[dict(event='rows', teacher='t', block=b, rows=[row])
                              for b in range(i, i + group)])
                times.append(time.perf_counter() - begun)
        shutil.rmtree(folder)
        add(out, kind='flush', group=group, rows=calls, seconds=sorted(times)[2])


# ---- Little's law ----------------------------------------------------------------------------
def little(out, latency=.1, **_):
    "Workers 0: no latency at all, which is what the process itself can do."
    for workers in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        folder, calls = Path(tempfile.mkdtemp()), min(40*workers, 8000) or 8000
        t = fake.Fake('slow', batch=1, workers=workers or 8, fixed=latency*(workers > 0))
        begun = time.perf_counter()
        generate(fake.sums(calls), [t], folder/'run', Plan(n=4))
        seconds = time.perf_counter() - begun
        shutil.rmtree(folder)
        add(out, kind='little', workers=workers, latency=latency, calls=calls, seconds=seconds,
            per_second=calls/seconds, most_at_once=t.most)


# ---- kills -----------------------------------------------------------------------------------
def victim(folder, n, seed):
    "One session: 20 % of the requests fail, each answered request leaves a byte in `paid`."
    random.seed(os.getpid())
    t = fake.Fake('shaky', batch=1, workers=16, faults=.2, fixed=.02, paid=f'{folder}.paid')
    plan = Plan(n=4, seed=seed, pause=.005, tries=40, shard_rows=1000)
    print('BEGIN', flush=True)
    generate(fake.sums(n), [t], folder, plan, resume=True)
    return dict(ended=True)

def kills(out, seeds=3, n=10_000, **_):
    for seed in range(seeds):
        rng, folder = random.Random(seed), Path(tempfile.mkdtemp())/'run'
        begun, k = time.perf_counter(), 0
        while True:
            p = subprocess.Popen([sys.executable, str(HERE), 'victim', str(folder), str(n),
                                  str(seed)], stdout=subprocess.PIPE, text=True)
            assert p.stdout.readline() == 'BEGIN\n'
            try: p.communicate(timeout=rng.uniform(.1, 2.)*(1 + k/20))
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGKILL); p.communicate(); k += 1; continue
            assert p.returncode == 0
            break
        found, rows = check_run(folder), Counter()
        for r in run_rows(folder):
            rows[(r['problem'], r['source']['sample'], r['response'])] += 1
        truth = fake.Fake('shaky')
        want = Counter((p.id, i, truth.answer(p, seed, i).text) for p in fake.sums(n)
                       for i in range(4))
        paid = os.path.getsize(f'{folder}.paid')
        lost = json.loads((folder/'card.json').read_text())['report']['teachers']['shaky']['lost']
        add(out, kind='kills', seed=seed, requests=n, faults=.2, kills=k, rows=found['rows'],
            missing=found['missing'], repeated=found['repeated'], exact=rows == want,
            answered=paid, paid_twice=paid - n, lost=lost, bound=k*32,
            seconds=time.perf_counter() - begun)
        shutil.rmtree(folder.parent)


# ---- live: the shipped models ----------------------------------------------------------------
def value(node):
    "An independent reading of arithmetic: Python's own grammar, exact fractions."
    if isinstance(node, ast.Expression): return value(node.body)
    if isinstance(node, ast.Constant): return Fraction(node.value)
    a, b = value(node.left), value(node.right)
    if isinstance(node.op, ast.Add): return a + b
    if isinstance(node.op, ast.Sub): return a - b
    return a*b if isinstance(node.op, ast.Mult) else a/b

def normal(node):
    "The same text for sums and products that differ in order alone."
    if isinstance(node, ast.Expression): return normal(node.body)
    if isinstance(node, ast.Constant): return str(node.value)
    sign = {ast.Add: '+', ast.Sub: '-', ast.Mult: '*', ast.Div: '/'}[type(node.op)]
    def parts(x):
        same = isinstance(x, ast.BinOp) and type(x.op) is type(node.op)
        return parts(x.left) + parts(x.right) if same else [normal(x)]
    if sign in '+*': return '(' + f' {sign} '.join(sorted(parts(node))) + ')'
    return f'({normal(node.left)} {sign} {normal(node.right)})'

def passes(prompt, answer):
    "Right by the prompt's words alone: the target, and each number once."
    want, *given = [int(w) for w in prompt.replace('.', ' ').split() if w.isdigit()]
    try:
        tree = ast.parse(answer.strip(), mode='eval')
        used = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        return value(tree) == want and sorted(used) == sorted(given)
    except (SyntaxError, ZeroDivisionError, AttributeError, ValueError, TypeError): return False

def live(out, seeds=3, n=100, **_):
    import torch
    from r1nb.generate import judge
    from r1nb.tasks import countdown
    from r1nb.teacher import open_teacher
    from r1nb.verify import verify
    torch.set_num_threads(1)
    teachers = [open_teacher('local', m, licence='MIT', batch=25) for m in ('nano', 'nano-student')]
    for seed in range(seeds):
        problems, folder = countdown(n, seed=500 + seed), Path(tempfile.mkdtemp())/'run'
        begun = time.perf_counter()
        def new(row, before): return row['answer'] not in [b['answer'] for b in before]
        generate(problems, teachers, folder, Plan(n=4, seed=seed, max_new=246),
                 filters={'new': new})
        seconds, rows = time.perf_counter() - begun, list(run_rows(folder))
        check = check_run(folder)
        right = [r for r in rows if r['filters']['right']]
        kept = [r for r in rows if r['kept']]
        ok = sum(passes(r['prompt'], r['answer']) for r in kept)
        texts = Counter((r['problem'], r['answer']) for r in kept)
        def form(r): return r['problem'], normal(ast.parse(r['answer'].strip(), mode='eval'))
        forms, by = Counter(map(form, kept)), {}
        for t in ('nano', 'nano-student'):
            mine = [r for r in rows if r['teacher'] == t]
            by[t] = dict(rows=len(mine), right=sum(r['filters']['right'] for r in mine),
                         kept=sum(r['kept'] for r in mine), tokens=sum(r['tokens'] for r in mine))
        unchecked = [r for r in rows if r['finished']]
        swapped = [verify(problems[(int(r['source']['at']) + 1) % n], r['response']).answer
                   for r in kept]
        add(out, kind='live', seed=seed, problems=n, teachers=by, rows=len(rows), right=len(right),
            kept=len(kept), kept_pass=ok, complete=check['complete'], seconds=seconds,
            solved=len({r['problem'] for r in kept}),
            duplicates_same_request=sum(not r['filters']['new'] for r in right),
            duplicates_between_teachers=len(kept) - len(texts), distinct_texts=len(texts),
            distinct_solutions=len(forms), control_finished=len(unchecked),
            control_pass=sum(passes(r['prompt'], r['answer']) for r in unchecked),
            missed=sum(passes(r['prompt'], r['answer']) for r in rows if not r['filters']['right']),
            control_swapped=len(swapped), control_swapped_right=sum(swapped))
        shutil.rmtree(folder.parent)


# ---- a student taught by what was kept -------------------------------------------------------
def exceed(out, seeds=1, first=0, n=1500, asked=400, **_):
    "The smaller base reads the larger one's kept traces; the control reads as many unchecked."
    import torch
    from r1nb.model import R1Model
    from r1nb.tasks import countdown
    from r1nb.engines import checkpoint
    from r1nb.teacher import open_teacher
    from r1nb.tokens import chat
    from r1nb.train import sft
    torch.set_num_threads(1)
    def new(row, before): return row['answer'] not in [b['answer'] for b in before]
    for seed in range(first, first + seeds):
        begun, folder = time.perf_counter(), Path(tempfile.mkdtemp())
        teacher = open_teacher('local', 'nano', licence='MIT', batch=64)
        plan = Plan(n=4, seed=seed, max_new=160)
        generate(countdown(n, seed=700 + seed), [teacher], folder/'lessons', plan,
                 filters={'new': new})
        rows = sorted(run_rows(folder/'lessons'),
                      key=lambda r: (r['source']['at'], r['source']['sample']))
        kept = [r for r in rows if r['kept']]
        ended = [r for r in rows if r['finished']]
        lessons = dict(verified=kept, unchecked=random.Random(seed).sample(ended, len(kept)))
        pupils = [teacher, open_teacher('local', 'nano-student', name='untaught', batch=64)]
        for name, rows in lessons.items():
            pairs = [(chat(r['prompt']), r['token_ids']) for r in rows]
            model = R1Model.from_pretrained(checkpoint('nano-student'))
            sft(model, pairs, 3, 16, 5e-4, seed, log=lambda row: None)
            pupils.append(open_teacher('local', model.eval(), name=name, batch=64))
        generate(countdown(asked, seed=900 + seed, split='held_out'), pupils, folder/'exam', plan)
        by = {t.name: [0.]*asked for t in pupils}
        for r in run_rows(folder/'exam'): by[r['teacher']][r['source']['at']] += r['kept']/plan.n
        def gain(a, b): return mean_ci([x - y for x, y in zip(by[a], by[b])])
        add(out, kind='exceed', seed=seed, lessons=len(kept), asked=asked, answers=plan.n,
            pass1={k: sum(v)/asked for k, v in by.items()},
            verified_over_teacher=gain('verified', 'nano'),
            unchecked_over_teacher=gain('unchecked', 'nano'),
            parameters={k: sum(p.numel() for p in t.load().parameters())
                        for k, t in zip(('teacher', 'student'), pupils)},
            seconds=time.perf_counter() - begun)
        shutil.rmtree(folder)


def merge(target, files):
    rows = [json.loads(l) for f in files for l in Path(f).read_text().splitlines()]
    machine = 'cpu', 'cores', 'python', 'torch'
    machine = {k: sorted({r[k] for r in rows if k in r}) for k in machine}
    out = {k: [{x: v for x, v in r.items() if x not in ('kind', *machine)}
               for r in rows if r['kind'] == k] for k in dict.fromkeys(r['kind'] for r in rows)}
    out |= dict(hardware=machine, command='python tests/measure_generate.py '
                'live --seeds 5 --n 150; kills; flush; little; memory; exceed --seeds 5 --n 300',
                versions=dict(r1nb=hardware()['r1nb']))
    write_atomic(target, json.dumps(out, indent=1))

if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('what'); a.add_argument('out'); a.add_argument('more', nargs='*')
    a.add_argument('--seeds', type=int, default=3); a.add_argument('--n', type=int)
    a.add_argument('--first', type=int, default=0)
    a = a.parse_args()
    if a.what == 'flood': print(json.dumps(flood(int(a.out))))
    elif a.what == 'victim': print(json.dumps(victim(a.out, int(a.more[0]), int(a.more[1]))))
    elif a.what == 'merge': merge(a.out, a.more)
    else: globals()[a.what](a.out, seeds=a.seeds, first=a.first,
                             **({'n': a.n} if a.n else {}))
