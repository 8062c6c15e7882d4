"Many runs of one script side by side, within a time limit: what the measure_*.py share."
import subprocess, sys, time

def sweep(
    jobs,            # of lists: the arguments of each run
    workers=4,       # runs at a time
    until=460,       # seconds; what still runs then is ended
    last=.6,         # none begins after this share of them
):
    "Run this very script again and again."
    start, running = time.monotonic(), []
    late = lambda: time.monotonic() - start > float(until)*last
    for job in jobs:
        while sum(p.poll() is None for p in running) >= int(workers) and not late(): time.sleep(.5)
        if late(): break
        running.append(subprocess.Popen([sys.executable, sys.argv[0], *map(str, job)]))
    for p in running:
        try: p.wait(max(float(until) - (time.monotonic() - start), .1))
        except subprocess.TimeoutExpired: p.kill()
