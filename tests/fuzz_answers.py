"""Random pieces of LaTeX at the verifier: no exception, no verdict later than the limit.

    python tests/fuzz_answers.py [100000]
"""
import sys, time
from test_math_answers import fuzz
from r1nb.math_answers import shared, verify

def main(n=100_000):
    verify('x+1', '\\boxed{1+x}'); time.sleep(10)   # the workers have started
    worst, start = 0., time.perf_counter()
    for i, (gold, response) in enumerate(fuzz(n, 1)):
        began = time.perf_counter()
        v = verify(gold, response, strict=i % 2 == 0)
        worst = max(worst, time.perf_counter() - began)
        assert v.answer in (0, 1) and v.reason
        if i % 5000 == 4999: print(i + 1, f'worst {worst:.2f} s', flush=True)
    print(f'{n} inputs, no exception, worst {worst:.2f} s, {shared(1.).kills} processes killed, '
          f'{n/(time.perf_counter() - start):.0f} a second')

if __name__ == '__main__': main(*map(int, sys.argv[1:]))
