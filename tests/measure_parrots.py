"""Many suspects that count words, for narrow intervals: nbs/results/provenance_parrots.json.

    python tests/measure_parrots.py OUT [SUSPECTS] [QUESTIONS]
"""
import json, sys
from pathlib import Path
from r1nb.provenance import ballot, keyed_score, mixture, parrot, prattle, votes

MIXES = {'0 %': 0., '0 % again': 0., '2 %': .02, '5 %': .05, '10 %': .1, '30 %': .3}

def lessons(kind, key, own):
    if kind == 'rival': return mixture(1200, 0., key, own, rival=True)
    return mixture(1200, MIXES[kind], key, own)

def main(out, suspects=40, questions=2400):
    rows, at = [], [int(questions)//2**i for i in range(5)][::-1]
    for kind in [*MIXES, 'rival']:
        for seed in range(int(suspects)):
            key, own = f'secret {seed}', f'{seed}/{kind}'
            said = prattle(parrot(lessons(kind, key, own)), int(questions), own)
            z = {str(q): round(keyed_score(key, votes(said[:q])), 4) for q in at}
            hmm = sum('Hmm,' in s for s in said)/len(said)
            rows.append(dict(kind=kind, seed=seed, z=z, ballot=ballot(key, votes(said)),
                             repeats=ballot(key, votes(said), True), hmm=round(hmm, 4)))
    what = dict(what='word counters taught by mixtures; the key of suspect S is "secret S"',
                command='python tests/measure_parrots.py OUT', lessons=1200)
    lines = ',\n'.join(json.dumps(r, separators=(',', ':')) for r in rows)
    Path(out).write_text(json.dumps(what)[:-1] + ', "rows": [\n' + lines + ']}\n')

if __name__ == '__main__': main(*sys.argv[1:])
