"""Faults at every file call of a run, and flipped bits in its checkpoints.

A reference run tells the calls by which a run changes its folder (tests/faults/preload.c counts them). Then, one run for each:
  kill   SIGKILL before a call, after it, and in the middle of every write; after SIGTERM, before each call of the save that it asks for
  errno  ENOSPC and EIO at a call, once and from there on
  flip   a flipped bit in every file of the last checkpoint
After each, `--resume` must end with the bits of the reference, from no earlier a checkpoint than the last one that was complete.
"""

import argparse
import concurrent.futures
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIKHONOV = os.environ.get("TIKHONOV_BINARY", str(ROOT / "target/release/tikhonov"))
# 16 steps, 8 saves, with all that a checkpoint may hold.
CONFIG = """
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 4, dropout: 0.1}}
task: {classification: {label_smoothing: 0.1}}
data:
  train: {shapes: {count: 300, size: 16}}
  validation: {fraction: 0.2}
  test: {shapes: {count: 60, size: 16}}
  batch_size: 32
  workers: 1
  augment: [{crop: {padding: 1}}, {flip: {horizontal: true}}]
penalty: {l2: 5.0e-4}
optimizer: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}
schedule: {one_cycle: {}}
train: {epochs: 2, ema: {decay: 0.9}, checkpoint: {every_steps: 2, keep: 1}}
"""
# Of a run's own threads and times.
FLEETING = ("seconds", "images_per_s")


def run(home, folder, *options, **environment):
    """(exit code, stderr); the code of a signal is negative."""
    environment = {key: str(value) for key, value in environment.items()}
    command = [TIKHONOV, "train", str(home / "run.yaml"), "--output", str(folder), "--quiet", *options]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    return done.returncode, done.stderr.decode("utf8", "replace")


def outcome(folder):
    """What must be the same bit for bit: the tensors of the last checkpoint, and the records of the metrics."""
    last = folder / "checkpoints/last"
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(last.glob("*.safetensors"))}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for key in FLEETING:
            record.pop(key, None)
    result = json.loads((folder / "result.json").read_text())
    for key in ("folder", "seconds"):
        result.pop(key)
    return sums, records, result


def strays(folder):
    found = [path for path in folder.rglob(".*") if path.name != ".lock"]
    return [str(path.relative_to(folder)) for path in found]


class Sweep:
    def __init__(self, home, jobs):
        self.home, self.jobs = home, jobs
        self.library = home / "preload.so"
        source = ROOT / "tests/faults/preload.c"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", self.library, source, "-ldl"], check=True)
        (home / "run.yaml").write_text(CONFIG)
        self.reference = home / "reference"
        code, errors = run(home, self.reference, **self.faulty(self.reference))
        assert code == 0, errors
        self.wanted = outcome(self.reference)
        self.calls = self.log(self.reference)
        # The step of each checkpoint, in the order in which `last` came to point to it.
        self.steps = [step for step in range(2, 17, 2)]
        ends = sum(is_last(call) for call in self.calls)
        assert ends == len(self.steps), f"{ends} saves"

    def faulty(self, folder, **more):
        log = folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        return {"LD_PRELOAD": self.library, "FAULT_FOLDER": folder, "FAULT_LOG": log, **more}

    def log(self, folder):
        log = folder.with_suffix(".log")
        return [line.split(" ", 2)[1:] for line in log.read_text().splitlines()] if log.exists() else []

    def fault(self, name, folder, expected, **more):
        """One faulty run and its resume: what was wrong, or None."""
        wrong = []
        try:
            code, errors = run(self.home, folder, **self.faulty(folder, **more))
            if code not in expected:
                wrong.append(f"exit {code}: {errors.strip()[:300]}")
            if code == 0 and outcome(folder) != self.wanted:
                wrong.append("exit 0 and other bits")
            if code > 0 and not errors.strip():
                wrong.append("nothing on stderr")
            # The call at which it happened may not have been made.
            made = self.log(folder)
            at = min(int(more.get("FAULT_AT", 0)), len(made))
            safe = sum(is_last(call) for call in made[: at - (more.get("FAULT_DO") != "after")])
            wrong += self.resume(folder, self.steps[safe - 1] if safe and code != 0 else 0)
        except Exception as error:
            wrong.append(repr(error))
        shutil.rmtree(folder, ignore_errors=True)
        call = made[at - 1] if wrong and at else ""
        return f"{name} {call}: {'; '.join(wrong)}" if wrong else None

    def resume(self, folder, step):
        wrong = []
        code, errors = run(self.home, folder, "--resume")
        if code != 0 or errors.strip():
            wrong.append(f"resume: exit {code}: {errors.strip()[:300]}")
        if code == 0 and outcome(folder) != self.wanted:
            wrong.append("resume: other bits")
        began = re.findall(r"^resuming at step (\d+)", (folder / "log.txt").read_text(), re.M)
        if step and (not began or int(began[-1]) < step):
            wrong.append(f"resume: from step {began[-1:]}, step {step} was saved")
        if left := strays(folder):
            wrong.append(f"left: {left}")
        return wrong

    def kills(self):
        """At every call; then within the save that SIGTERM asks for."""
        numbers = range(1, len(self.calls) + 1)
        for number in numbers:
            for how in ("before", "within", "after"):
                if how == "within" and self.calls[number - 1][0] != "write":
                    continue
                yield how, {"FAULT_AT": number, "FAULT_DO": how}, (-signal.SIGKILL, 0)
        # SIGTERM while the end of the first epoch is saved, as a batch system sends it, and SIGKILL at each call after it.
        first = next(n for n in numbers if "epoch-0001" in self.calls[n - 1][1])
        for number in range(first + 1, first + 45):
            yield "after SIGTERM", {"FAULT_TERM": first, "FAULT_AT": number, "FAULT_DO": "before"}, (-signal.SIGKILL, 75)

    def errors(self):
        for name in ("ENOSPC", "EIO"):
            for often in ("once", "for ever"):
                always = {"FAULT_ALWAYS": 1} if often == "for ever" else {}
                for number in range(1, len(self.calls) + 1):
                    more = {"FAULT_AT": number, "FAULT_DO": getattr(errno, name), **always}
                    # 0 where it was a plot, or the removal of a file that nobody needs; the bits are compared.
                    yield f"{name} {often}", more, (7, 0)

    def sweep(self, kind, cases, every):
        cases = [case for at, case in enumerate(cases) if at % every == 0]
        counts = {}
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            runs = {
                pool.submit(self.fault, f"{how} {more}", self.home / f"{kind}-{at}", expected, **more): how
                for at, (how, more, expected) in enumerate(cases)
            }
            for done in concurrent.futures.as_completed(runs):
                count(counts, runs[done], done.result())
        return counts

    def flips(self, many):
        """Flipped bits in the last checkpoint of a run that was interrupted: told, and never taken."""
        half = self.home / "half"
        code, errors = run(self.home, half, **self.faulty(half, FAULT_TERM=len(self.calls) // 2))
        assert code == 75, errors
        last = os.readlink(half / "checkpoints/last")
        counts, draw, jobs = {}, random.Random(0), []
        for file in sorted((half / "checkpoints" / last).iterdir()):
            jobs += [(file.name, draw.randrange(8 * file.stat().st_size)) for _ in range(many)]

        def flip(job):
            name, bit = job
            folder = self.home / f"flip-{name}-{bit}"
            shutil.copytree(half, folder, symlinks=True)
            file = folder / "checkpoints" / last / name
            data = bytearray(file.read_bytes())
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            code, errors = run(self.home, folder, "--resume")
            # Told; and gone back to the checkpoint before it, or refused.
            told = last in errors and (code == 4 or (code == 0 and outcome(folder) == self.wanted))
            shutil.rmtree(folder)
            return None if told else f"flip of bit {bit} of {name}: exit {code}: {errors.strip()[:300]}"

        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            for (name, _), failure in zip(jobs, pool.map(flip, jobs)):
                count(counts, name, failure)
        return counts


def count(counts, kind, failure):
    """Adds one to what was tried of a kind, and to what failed of it."""
    tried, failed = counts.get(kind, (0, 0))
    counts[kind] = (tried + 1, failed + bool(failure))
    if failure:
        print("FAILED", failure, flush=True)


def is_last(call):
    return call[0] == "rename" and call[1].endswith("checkpoints/last")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["kill", "errno", "flip"], help="kill, errno, flip; all by default")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of kills and errors only every N-th")
    parser.add_argument("--flips", type=int, default=500, metavar="N", help="flipped bits in each file of a checkpoint")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at a time")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as home:
        sweep = Sweep(Path(home), options.jobs)
        print(f"{len(sweep.calls)} calls of a run change a file", flush=True)
        print("| fault | tried | lost or changed |\n|---|---|---|", flush=True)
        for kind in options.kinds:
            if kind == "flip":
                counts = sweep.flips(options.flips)
            else:
                cases = {"kill": sweep.kills, "errno": sweep.errors}[kind]
                counts = sweep.sweep(kind, cases(), options.every)
            for how, (tried, bad) in counts.items():
                failed += bad
                print(f"| {kind}: {how} | {tried} | {bad} |", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
