"""log10 Z of a .uai file by one peer, in a process of its own: `python uai_peers.py PEER FILE [EVIDENCE]` prints one JSON object.

Keys: log10_z, and `own`, the CPU seconds that the solver itself took, without imports and without reading the file. The peers may live in
another environment than lnz: nothing of lnz is imported, but by the job `lnz`. `python uai_peers.py` prints the
peers that are installed, `python uai_peers.py --all` those it knows.
"""

import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

# name: the module, or else the program, that it needs
NEEDS = {
    "lnz": "lnz",
    "pyAgrum": "pyagrum",
    "pyGMs": "pygms",
    "pgmpy": "pgmpy",
    "opt_einsum": "opt_einsum",
    "ctg-greedy": "cotengra",
    "ctg-auto": "cotengra",
    "ganak": "pyganak",
    "toulbar2": "toulbar2",
}


def read(path, evidence):
    """Cardinalities, scopes and tables, given the evidence: tables are cut to what was observed."""
    import numpy as np

    words = iter(Path(path).read_text().split()[1:])
    cardinalities = [int(next(words)) for _ in range(int(next(words)))]
    scopes = [[int(next(words)) for _ in range(int(next(words)))] for _ in range(int(next(words)))]
    seen = observations(evidence)
    tables = []
    for i, scope in enumerate(scopes):
        flat = np.array([float(next(words)) for _ in range(int(next(words)))])
        table = flat.reshape([cardinalities[v] for v in scope])
        tables.append(table[tuple(seen.get(v, slice(None)) for v in scope)])
        scopes[i] = [v for v in scope if v not in seen]
    return cardinalities, scopes, tables


def observations(evidence):
    numbers = [int(word) for word in Path(evidence).read_text().split()] if evidence else [0]
    pairs = numbers[1:] if len(numbers) % 2 else numbers[2:]
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def scaled(tables):
    """The tables with a largest entry of 1, and the log10 of what was taken out."""
    tops = [float(table.max()) for table in tables]
    return [table / top for table, top in zip(tables, tops, strict=True)], math.fsum(map(math.log10, tops))


def lnz(path, evidence):
    from lnz._cli.graphical import solver_of
    from lnz._graphs.solver import EliminationBudget
    from lnz.io._uai import checked_evidence, read_uai_model

    model = read_uai_model(path)
    seen = checked_evidence(evidence, model.cardinalities)
    yield
    yield solver_of(model, seen, EliminationBudget()).log_partition() / math.log(10)


def pyagrum(path, evidence):
    """By the clique marginals of its junction tree: log Z = log ψ(x) - log p(x) at a configuration x that is found on the way."""
    import pyagrum as gum

    cardinalities, scopes, tables = read(path, None)
    graph, seen = gum.MarkovRandomField(), observations(evidence)
    for v, k in enumerate(cardinalities):
        graph.add(gum.LabelizedVariable(f"v{v}", "", k))
    constant, potentials = 0.0, {}
    for scope, table in zip(scopes, tables, strict=True):  # it takes one factor a scope
        axes = tuple(sorted(range(len(scope)), key=scope.__getitem__))
        name, table = tuple(scope[a] for a in axes), table.transpose(axes)
        potentials[name] = potentials[name] * table if name in potentials else table
    for name, table in potentials.items():
        if name:
            graph.addFactor(set(name)).fillWith(1.0)
            factor = graph.factor(set(name))
            top = table.max()
            constant += math.log10(top)
            factor[:] = (table / top).transpose([name.index(int(v[1:])) for v in reversed(factor.names)]).copy()
    yield
    engine = gum.ShaferShenoyMRFInference(graph)
    engine.setEvidence(seen)
    tree = engine.junctionTree()
    cliques = {node: set(tree.clique(node)) for node in tree.nodes()}
    for clique in cliques.values():
        engine.addJointTarget(clique)
    engine.makeInference()
    chosen, log_p, done = dict(seen), 0.0, set()
    for root in cliques:
        stack = [root]
        while stack:
            node = stack.pop()
            if node in done:
                continue
            done.add(node)
            stack.extend(tree.neighbours(node))
            joint = engine.jointPosterior(cliques[node])
            names = [int(name[1:]) for name in reversed(joint.names)]  # its arrays have the first variable last
            part = joint.toarray()[tuple(chosen.get(v, slice(None)) for v in names)]
            free = [v for v in names if v not in chosen]
            place = list(zip(free, map(int, _argmax(part)), strict=True))
            log_p += math.log10(float(part.max())) - math.log10(float(part.sum()))
            chosen.update(place)
    log_weight = sum(
        math.log10(float(table[tuple(chosen[v] for v in scope)])) for scope, table in zip(scopes, tables, strict=True)
    )
    yield log_weight - log_p


def _argmax(table):
    import numpy as np

    return np.unravel_index(int(table.argmax()), table.shape)


def pygms(path, evidence):
    import pygms
    from pygms import wmb
    from pygms.filetypes import readUai

    factors = readUai(path)
    model = pygms.GraphModel(factors)
    yield
    seen = observations(evidence)
    if seen:
        model.condition(seen)
    order, _ = pygms.eliminationOrder(model, "minfill")
    yield wmb.JTree(model, elimOrder=order, weights=1.0).msgForward() / math.log(10)


def pgmpy(path, evidence):
    """Its variable elimination; it has no search for an order of a Markov network, so it is given one by least degree."""
    import networkx
    from pgmpy.factors.discrete import DiscreteFactor
    from pgmpy.inference import VariableElimination
    from pgmpy.models import DiscreteMarkovNetwork

    cardinalities, scopes, tables = read(path, evidence)
    missing = set(range(len(cardinalities))).difference(*scopes, observations(evidence))
    tables, log_z = scaled(tables)
    yield
    log_z += sum(math.log10(cardinalities[v]) for v in missing)
    around = {v: set() for scope in scopes for v in scope}
    for a, b in (pair for scope in scopes for pair in itertools.permutations(scope, 2)):
        around[a].add(b)
    whole = networkx.Graph({v: list(us) for v, us in around.items()})
    log_z += sum(math.log10(float(t)) for t in tables if t.ndim == 0)
    for part in list(networkx.connected_components(whole)):  # which it takes one by one
        graph = DiscreteMarkovNetwork(whole.subgraph(part).edges)
        graph.add_nodes_from(part)
        inside = [(s, t) for s, t in zip(scopes, tables, strict=True) if s and part.issuperset(s)]
        graph.add_factors(*(DiscreteFactor(s, t.shape, t) for s, t in inside))
        order = []
        while len(part) > 1:
            v = min(part, key=lambda v: len(around[v]))
            part.remove(v)
            for u in (gone := around.pop(v)):
                around[u] |= gone - {u}
                around[u].discard(v)
            order.append(v)
        engine = VariableElimination(graph)
        engine._initialize_structures()
        rest = engine._variable_elimination(list(part), "marginalize", elimination_order=order, show_progress=False)
        log_z += math.log10(float(rest.values.sum()))
    yield log_z


def _einsum(path, evidence, contract):
    cardinalities, scopes, tables = read(path, evidence)
    missing = set(range(len(cardinalities))).difference(*scopes, observations(evidence))
    tables, constant = scaled(tables)
    yield
    yield math.log10(contract(tables, scopes)) + constant + sum(math.log10(cardinalities[v]) for v in missing)


def opt_einsum(path, evidence):
    import opt_einsum

    def contract(tables, scopes):
        terms = itertools.chain.from_iterable(zip(tables, scopes, strict=True))
        return float(opt_einsum.contract(*terms, [], optimize="greedy"))

    return _einsum(path, evidence, contract)


def cotengra(path, evidence, **options):
    import cotengra

    def contract(tables, scopes):
        made = options["make"](cotengra)
        return float(cotengra.array_contract(tables, [tuple(s) for s in scopes], (), optimize=made))

    return _einsum(path, evidence, contract)


def ganak(path, evidence):
    """As weighted clauses: a Boolean for every value of a variable (one for two values), and one for every entry but 0 and 1."""
    from pyganak import WeightedCounter

    cardinalities, scopes, tables = read(path, evidence)
    seen = observations(evidence)
    tables, constant = scaled(tables)
    yield
    counter, last, clauses, weights = WeightedCounter(), 0, [], []
    literal = {}
    for v, k in enumerate(cardinalities):
        if v in seen:
            continue
        names = list(range(last + 1, last + 1 + (k if k > 2 else k - 1)))
        last += len(names)
        if k == 2:
            literal[v, 0], literal[v, 1] = -names[0], names[0]
        elif k > 2:
            literal.update({(v, x): name for x, name in enumerate(names)})
            clauses += [names, *([-a, -b] for a, b in itertools.combinations(names, 2))]
    for scope, table in zip(scopes, tables, strict=True):
        for place in itertools.product(*map(range, table.shape)):
            entry, row = (
                float(table[place]),
                [literal[v, x] for v, x in zip(scope, place, strict=True) if cardinalities[v] > 1],
            )
            if entry == 0:
                clauses.append([-a for a in row])
            elif entry != 1 and len(row) == 1:
                weights.append((row[0], entry))
            elif entry != 1:
                last += 1
                clauses += [[last, *(-a for a in row)], *([-last, a] for a in row)]
                weights.append((last, entry))
    single = {}
    for name, entry in weights:  # several fields on one variable
        single[name] = single.get(name, 1.0) * entry
    for name in range(1, last + 1):
        for sign in (name, -name):
            counter.set_lit_weight(sign, single.get(sign, 1.0))
    counter.add_clauses(clauses)
    yield math.log10(float(counter.count())) + constant


def toulbar2(path, evidence):
    """The program's own figures: it prints three decimals, and its seconds."""
    yield
    command = ["toulbar2", path, *([evidence] if evidence else []), "-logz"]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"(\S+) <= Log10\(Z\) <= (\S+) in .* and (\S+) seconds", text)
    if found is None or float(found[2]) - float(found[1]) > 2e-3:
        raise RuntimeError(text.strip().splitlines()[-1] if text else "no answer")
    yield {"log10_z": float(found[2]), "own": float(found[3])}


JOBS = {
    "lnz": lnz,
    "pyAgrum": pyagrum,
    "pyGMs": pygms,
    "pgmpy": pgmpy,
    "opt_einsum": opt_einsum,
    "ctg-greedy": lambda path, evidence: cotengra(
        path, evidence, make=lambda c: c.RandomGreedyOptimizer(max_repeats=32, parallel=False)
    ),
    "ctg-auto": lambda path, evidence: cotengra(path, evidence, make=lambda c: c.AutoOptimizer(parallel=False)),
    "ganak": ganak,
    "toulbar2": toulbar2,
}


def installed():
    """The peers that can be run here."""
    return [name for name, need in NEEDS.items() if importlib.util.find_spec(need) or shutil.which(need)]


def main():
    if len(sys.argv) < 3:
        print(json.dumps(list(NEEDS) if sys.argv[1:] == ["--all"] else installed()))
        return
    peer, path, evidence = (*sys.argv[1:], None)[:3]
    steps = JOBS[peer](path, evidence)
    next(steps)  # reads the file
    begun = time.process_time()
    found = next(steps)
    own = time.process_time() - begun
    print(json.dumps(found if isinstance(found, dict) else {"log10_z": float(found), "own": own}), flush=True)
    os._exit(0)  # what a library does at its end is no part of the answer


if __name__ == "__main__":
    main()
