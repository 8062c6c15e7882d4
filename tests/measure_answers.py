"""How good and how fast are the verdicts on graded model answers, beside Math-Verify's own?

    python tests/measure_answers.py [tune|report] [--errors] [--store]

Needs ../shared/data (or R1NB_DATA); --store writes nbs/results/math_answers.json.

Split by problem: `tune` was looked at while the rules were written, `report` was read to find wrong
labels. Rows whose label is demonstrably wrong are listed with their reason in wrong_labels.json
and set aside; arguable ones (a factored polynomial where an expanded one is known, a known answer
that lost a letter, a chain of equations) stay and count against the verifier. Tasks
whose answer is not one expression (puzzles with many solutions) are left to their own
checkers, and so are rows in which the source found no answer to grade (its label then speaks of
the form alone).
"""
import hashlib, json, os, sys, time
from collections import defaultdict
from pathlib import Path
from r1nb.roofline import record

HERE = Path(__file__).parent
DATA = Path(os.environ.get('R1NB_DATA') or HERE.parent/'../shared/data')/'graded'
SOURCES = ('gsm8k_openai', 'qwen25_math_evals', 'math_cot_100x8', 'think_rollouts_llama3b',
           'reasoning_gym_math')
OWN_CHECKER = ('games/puzzle24', 'logic/knights_knaves')

def rows(half, everything=False):
    "Graded answers of one half of the problems: dicts with source, id, gold, answer_text, label."
    wrong = {r['id'] for r in json.loads((HERE/'wrong_labels.json').read_text())}
    if everything: wrong = set()
    for source in SOURCES:
        for line in open(DATA/f'{source}.jsonl', encoding='utf-8'):
            r = json.loads(line)
            odd = hashlib.sha256(r['problem'].encode()).digest()[0] % 2
            if odd != (half == 'report') or r['label'] is None: continue
            if r.get('task') in OWN_CHECKER: continue
            if source == 'reasoning_gym_math' and r['extracted'] is None: continue
            if r['id'] not in wrong: yield r | {'source': source}

def math_verify_alone(gold, response, source):
    from math_verify import parse, verify
    try: return bool(verify(parse(gold if '$' in gold else f'${gold}$'), parse(response)))
    except Exception: return False

def ours(strict):
    from r1nb.math_answers import verify
    return lambda gold, response, source: bool(verify(gold, response, strict=strict).answer)

def judge(items, decide, errors=None):
    "Per source: rows, false positives and negatives, right; seconds; latencies."
    table, late, start = defaultdict(lambda: [0, 0, 0, 0]), [], time.perf_counter()
    for r in items:
        t0 = time.perf_counter()
        ok = decide(r['gold'], r['answer_text'], r['source'])
        late.append(time.perf_counter() - t0)
        t = table[r['source']]
        t[0] += 1; t[1] += ok and not r['label']; t[2] += not ok and r['label']; t[3] += r['label']
        if errors is not None and ok != r['label']: errors.append(r)
    return table, time.perf_counter() - start, sorted(late)

def show(name, table, seconds, late):
    n = sum(t[0] for t in table.values())
    table['all'] = [*map(sum, zip(*table.values()))]
    for source, (rows, fp, fn, right) in table.items():
        print(f'{name:12} {source:24}{rows:5} rows  '
              f'false positives {fp:3} ({fp/max(1, rows-right):6.2%}'
              f' of wrong)  false negatives {fn:3} ({fn/max(1, right):6.2%} of right)')
    if seconds: print(f'{name:12} {n/seconds:8.1f} a second; latency p50 {late[n//2]*1e3:.2f} ms, '
                      f'p99 {late[int(n*.99)]*1e3:.1f} ms, worst {late[-1]*1e3:.0f} ms')
    sources = {s: dict(rows=t[0], false_positive=t[1], false_negative=t[2], right=t[3])
               for s, t in table.items() if s != 'all'}
    return dict(false_positive=table['all'][1], false_negative=table['all'][2], rows=n,
                right=table['all'][3], per_second=n/seconds, p99_ms=1e3*late[int(n*.99)],
                sources=sources)

def processor():
    "Processor seconds of this process and of the verifier's workers so far."
    from r1nb.math_answers import POOL
    total, tick = time.process_time(), os.sysconf('SC_CLK_TCK')
    for w in (w for p in POOL.values() for w in p.all):
        fields = Path(f'/proc/{w.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
        total += (int(fields[11]) + int(fields[12]))/tick
    return total

def unmarked(items):
    "Right answers that a reward cannot pay, because nothing marks them."
    from r1nb.extract import extract
    return sum(r['label'] and not extract(r['answer_text'])[0] for r in items)

def main(half='report', *flags):
    from r1nb.math_answers import verify_all
    items, found = list(rows(half)), {}
    verify_all(['x']*40, [f'\\boxed{{x+{i}}}' for i in range(40)])
    time.sleep(5); verify_all(['y']*40, [f'\\boxed{{y+{i}}}' for i in range(40)])   # both warm
    for strict, name in ((False, 'evaluate'), (True, 'reward')):
        errors, used = [], processor()
        found[f'r1nb, {name}'] = show(name, *judge(items, ours(strict), errors))
        found[f'r1nb, {name}']['processor_ms'] = 1e3*(processor() - used)/len(items)
        if '--errors' in flags:
            for r in errors: print(json.dumps([r['source'], r['id'], r['label'], r['gold'],
                                               r['answer_text'][-160:]], ensure_ascii=False))
    if '--errors' in flags: return
    found['r1nb, reward']['unmarked'] = unmarked(items)
    print('right, but marked by nothing:', found['r1nb, reward']['unmarked'])
    used = processor()
    found['Math-Verify'] = show('Math-Verify', *judge(items, math_verify_alone))
    found['Math-Verify']['processor_ms'] = 1e3*(processor() - used)/len(items)
    print('processor ms a verdict:', {k: round(v['processor_ms'], 3) for k, v in found.items()})
    rate = found['Math-Verify']['per_second']
    others = {}
    for name, half_, all_ in (('the other half', 'tune' if half == 'report' else 'report', False),
                              ('nothing set aside', half, True)):
        more = list(rows(half_, all_))
        others[name] = {f'r1nb, {k}': show(f'{k} *', *judge(more, ours(strict)))
                        for k, strict in (('evaluate', False), ('reward', True))}
        others[name]['Math-Verify'] = show('Math-Verify *', *judge(more, math_verify_alone))
    from r1nb import math_answers
    for pool in math_answers.POOL.values(): pool.close()
    math_answers.POOL.clear(); math_answers.CACHE.clear()   # nothing remembered, processes warm
    verify_all(['x']*40, [f'\\boxed{{x+{i}}}' for i in range(40)])
    time.sleep(3); verify_all(['y']*40, [f'\\boxed{{y+{i}}}' for i in range(40)])
    start = time.perf_counter()
    verify_all([r['gold'] for r in items], [r['answer_text'] for r in items], strict=False)
    ours_rate = len(items)/(time.perf_counter() - start)
    print(f'verify_all, 2 processes: {ours_rate:.0f} a second, '
          f'{ours_rate/rate:.1f} times Math-Verify')
    if '--store' not in flags: return
    set_aside = json.loads((HERE/'wrong_labels.json').read_text())
    record(HERE.parent/'nbs/results/math_answers.json', half=half, settings=found, others=others,
           set_aside=len(set_aside), two_processes_per_second=ours_rate, load=os.getloadavg()[0])

if __name__ == '__main__': main(*sys.argv[1:])
