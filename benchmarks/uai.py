"""log10 Z of every .uai file of a folder, by lnz and by its peers: whole processes as a user waits for them, and the solver's own time.

    python benchmarks/uai.py FOLDER [--peers PYTHON] [--only NAME ...] [--repeats 3] [--seconds 60] [--out TABLE.md]

A file NAME.uai may have its evidence in NAME.uai.evid and its reference, log10 Z, in NAME.uai.PR. PYTHON is the interpreter of an
environment that has peers (pyagrum, pgmpy, pygms, opt_einsum with cotengra, pyganak), and toulbar2 is run where it is on the path; those
that are missing are named. Every job is a process of its own, one after another, on one processor, with one thread, 60 CPU seconds at most
(--seconds) and 12 GB of address space. `whole` is CPU seconds of the process, start-up, imports, reading and ordering included; `wall` the
same by the clock, which other programs on the machine lengthen; `own` what the solver took without imports and reading; `MB` its peak
memory. The least of some repeats is kept of each time. lnz is run as `lnz logz FILE --json`, and its own time is taken by the job of that
name in uai_peers.py.

Goals: every instance that any peer solves; whole within that of the fastest peer plus 0.5 s; own less than the least of the peers on 12
of 15.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from timing import SINGLE, one_thread

JOBS = Path(__file__).with_name("uai_peers.py")
MEMORY = 12 * 10**9
LNZ = "from lnz._cli import main; main()"


def run(command: list[str], seconds: int = 60) -> dict:
    """What a process printed, and what it took."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    begun = time.perf_counter()
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | SINGLE, preexec_fn=limit
    )
    try:
        out, err = child.communicate(timeout=5 * seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
    return {"code": child.returncode, "out": out.decode(), "err": err.decode(), "wall": time.perf_counter() - begun}


def measured(command: list[str], seconds: int) -> dict:
    """The same with CPU seconds and peak memory, by a small process in between whose only child it is."""
    watcher = (
        "import json, resource, subprocess, sys, time; begun = time.perf_counter();"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps({'code': done.returncode, 'out': done.stdout.decode(), 'err': done.stderr.decode(),"
        "'wall': time.perf_counter() - begun, 'whole': used.ru_utime + used.ru_stime, 'MB': used.ru_maxrss / 1e3}))"
    )
    found = run([sys.executable, "-c", watcher, *command], seconds)
    return json.loads(found["out"]) if found["out"] else {"code": found["code"], "out": "", "err": found["err"]}


def attempt(command: list[str], repeats: int, seconds: int) -> dict:
    """The answer of a job and the least of its times, or why there is none."""
    best: dict = {}
    for _ in range(repeats):
        found = measured(command, seconds)
        lines = found["out"].strip().splitlines()
        if found["code"] != 0 or not lines:
            told = found["err"].strip().splitlines()[-1:] or [""]
            if "whole" not in found or found["whole"] > seconds - 1:
                return {"failure": "time"}
            memory = any(word in found["err"] for word in ("MemoryError", "bad_alloc", "emory", "OutOf"))
            return {"failure": "memory" if memory else f"failed ({told[0][:40]})"}
        answer = json.loads(lines[-1])
        new = {name: found[name] for name in ("whole", "wall", "MB")} | {"own": answer.get("own", math.inf)}
        best = {name: min(new[name], best.get(name, math.inf)) for name in new} | {"log10_z": answer["log10_z"]}
        if found["whole"] > 10:
            break
    return best


def instance(path: Path, peers: dict[str, str], *effort: int) -> dict[str, dict]:
    evidence = [str(path) + ".evid"] if Path(str(path) + ".evid").exists() else []
    option = ["--evidence", *evidence] if evidence else []
    found = {"lnz": attempt([sys.executable, "-c", LNZ, "logz", str(path), *option, "--json"], *effort)}
    if "failure" not in found["lnz"]:
        found["lnz"]["own"] = attempt([sys.executable, str(JOBS), "lnz", str(path), *evidence], *effort)["own"]
    for name, python in peers.items():
        found[name] = attempt([python, str(JOBS), name, str(path), *evidence], *effort)
    return found


def judged(found: dict[str, dict], reference: float | None) -> None:
    """A wrong answer is a failure: it differs from the reference by more than its six digits, or 0.001 for who prints no more."""
    sure = found["lnz"].get("log10_z", reference)
    for name, answer in found.items():
        z = answer.get("log10_z")
        if z is None:
            answer.setdefault("failure", "wrong: inf")
        elif sure is not None and not abs(z - sure) <= max(1e-6, 1e-3 if name == "toulbar2" else 0):
            answer["failure"] = f"wrong: {z:.6g}"


def cell(answer: dict, field: str, form: str) -> str:
    return answer.get("failure", format(answer.get(field, math.nan), form)).split(" (")[0]


def table(results: dict[str, dict[str, dict]], references: dict[str, float | None], names: list[str]) -> list[str]:
    """Two tables in Markdown: whole CPU seconds and memory, then own seconds."""
    lines = ["| instance | log10 Z | reference | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for path, found in results.items():
        ref = references[path]
        cells = [
            answer["failure"].split(" (")[0]
            if "failure" in answer
            else f"{answer['whole']:.2f}, {answer['wall']:.2f}, {answer['MB']:.0f}"
            for answer in (found[name] for name in names)
        ]
        z = found["lnz"].get("log10_z", math.nan)
        lines.append(f"| {path} | {z:.10g} | {'' if ref is None else f'{ref:.12g}'} | {' | '.join(cells)} |")
    lines += ["", "| instance | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for path, found in results.items():
        lines.append(f"| {path} | {' | '.join(cell(found[name], 'own', '.3f') for name in names)} |")
    return lines


def verdict(results: dict[str, dict[str, dict]]) -> list[str]:
    unsolved, slow, beaten = [], [], []
    for path, found in results.items():
        peers = {name: answer for name, answer in found.items() if name != "lnz" and "failure" not in answer}
        if "failure" in found["lnz"]:
            unsolved += [path] if peers else []
            continue
        if peers and found["lnz"]["whole"] > min(answer["whole"] for answer in peers.values()) + 0.5:
            slow.append(path)
        if peers and found["lnz"]["own"] > min(answer["own"] for answer in peers.values()):
            beaten.append(path)
    n = len(results)
    return [
        f"Solved by a peer and not by lnz: {', '.join(unsolved) or 'none'}.",
        f"Whole process slower than the fastest peer plus 0.5 s: {', '.join(slow) or 'none'} (of {n}).",
        f"Own time longer than the least of the peers: {', '.join(beaten) or 'none'} (of {n}).",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", default=sys.executable, help="the interpreter of the peers")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names")
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=60, help="of CPU time, for one job")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    one_thread()
    there = json.loads(run([args.peers, str(JOBS)])["out"])
    known = json.loads(run([args.peers, str(JOBS), "--all"])["out"])
    names = [name for name in there if name != "lnz" and name not in args.without]
    missing = [name for name in known if name not in there and name != "lnz"]
    print(f"peers: {', '.join(names)}; not installed: {', '.join(missing) or 'none'}", flush=True)
    results, references = {}, {}
    for path in sorted(args.folder.glob("*.uai")):
        if args.only and not any(part in path.name for part in args.only):
            continue
        reference = Path(str(path) + ".PR")
        name = path.name.removesuffix(".uai")
        references[name] = float(reference.read_text().split()[-1]) if reference.exists() else None
        results[name] = instance(path, dict.fromkeys(names, args.peers), args.repeats, args.seconds)
        judged(results[name], references[name])
        told = ", ".join(f"{peer} {cell(answer, 'own', '.3f')}" for peer, answer in results[name].items())
        print(f"{name}: {told}", flush=True)
    lines = [*table(results, references, ["lnz", *names]), "", *verdict(results)]
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
