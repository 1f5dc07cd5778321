"""lnz.torch.CRF against pytorch-crf and against sums over all labellings."""

import copy
import io
import itertools
import warnings

import jax.monitoring
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import lnz
from lnz.torch._bridge import bucket

K = 3
NAMES = ["O", "B", "I"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(5)


def layer(**options):
    """A layer with large, asymmetric parameters, in float64."""
    crf = lnz.torch.CRF(K, batch_first=True, **options).double()
    for values in crf.parameters():
        torch.nn.init.normal_(values)
    return crf


def batch(*shape):
    return torch.randn(*shape, K, dtype=torch.float64)


@torch.no_grad()
def labellings(crf, emissions, mask=None, cut=False):
    """All labellings of the steps of one sequence that exist, and their scores."""
    on = range(len(emissions)) if mask is None else [t for t, ok in enumerate(mask.tolist()) if ok]
    runs = [[t] for t in on[:1]]
    for before, t in itertools.pairwise(on):
        if cut and t != before + 1:
            runs.append([t])
        else:
            runs[-1].append(t)
    found = {}
    for y in itertools.product(range(K), repeat=len(on)):
        tags = dict(zip(on, y, strict=True))
        score = sum(float(emissions[t, k]) for t, k in tags.items())
        for run in runs:
            score += float(crf.start_transitions[tags[run[0]]] + crf.end_transitions[tags[run[-1]]])
            score += sum(float(crf.transitions[tags[a], tags[b]]) for a, b in itertools.pairwise(run))
        found[y] = score
    return found


def log_sum(scores):
    return float(torch.logsumexp(torch.tensor(list(scores), dtype=torch.float64), 0))


def pair(batch_first, dtype, tags=6):
    theirs = pytest.importorskip("torchcrf").CRF(tags, batch_first=batch_first)
    ours = lnz.torch.CRF(tags, batch_first=batch_first)
    for values in theirs.parameters():
        torch.nn.init.normal_(values)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    theirs.load_state_dict(ours.state_dict())
    return theirs.to(dtype), ours.to(dtype)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "token_mean"])
def test_values_gradients_and_tags_are_those_of_pytorch_crf(batch_first, dtype, reduction):
    theirs, ours = pair(batch_first, dtype)
    lengths = torch.tensor([1, 9, 4, 7, 2])
    mask = torch.arange(9)[None] < lengths[:, None]
    tags, emissions = torch.randint(6, (5, 9)), 3 * torch.randn(5, 9, 6, dtype=dtype)
    if not batch_first:
        mask, tags, emissions = mask.T, tags.T, emissions.transpose(0, 1)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    found = []
    for crf in (theirs, ours):
        leaf = emissions.clone().requires_grad_()
        value = crf(leaf, tags, mask, reduction)
        (value * torch.arange(1, 6).to(dtype)).sum().backward() if reduction == "none" else value.backward()
        found.append([value.detach(), leaf.grad, *(p.grad for p in crf.parameters())])
    for mine, other in zip(*found, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, **tolerance)
    assert ours.decode(emissions, mask) == theirs.decode(emissions, mask)
    assert ours.decode(emissions) == theirs.decode(emissions, torch.ones_like(mask))
    torch.testing.assert_close(ours(emissions, tags), theirs(emissions, tags, torch.ones_like(mask)), **tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_masks_can_be_integers(dtype):
    crf, emissions, tags = layer(), batch(2, 4), torch.randint(K, (2, 4))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert torch.equal(crf(emissions, tags, mask.to(dtype)), crf(emissions, tags, mask.bool()))


def check_all_queries(crf, emissions, mask, cut=False):
    """Every query of a sequence against the sum over all its labellings."""
    scores = labellings(crf, emissions, mask, cut)
    log_z, on = log_sum(scores.values()), np.flatnonzero(mask)
    p = {y: np.exp(score - log_z) for y, score in scores.items()}
    best = sorted(p, key=lambda y: -p[y])
    expected = np.zeros((len(mask), K))
    for y, weight in p.items():
        expected[on, y] += weight
    many, off = (emissions[None], mask[None]), torch.full((len(mask),), -100)
    assert float(crf.log_partition(*many).detach()) == pytest.approx(log_z, abs=1e-10)
    np.testing.assert_allclose(crf.marginals(*many)[0], expected, atol=1e-10)
    assert float(crf.entropy(*many).detach()) == pytest.approx(-sum(w * np.log(w) for w in p.values()), abs=1e-10)
    assert crf.decode(*many) == [list(best[0])]
    (several,) = crf.n_best(emissions[None], 4, mask[None])
    assert [tuple(tags) for tags, _ in several] == best[:4]
    np.testing.assert_allclose([nats for _, nats in several], [np.log(p[y]) for y in best[:4]], atol=1e-10)
    for y in best[:2]:
        tags = off.clone()
        tags[on] = torch.tensor(y)
        assert float(crf(emissions[None], tags[None], mask[None]).detach()) == pytest.approx(np.log(p[y]), abs=1e-10)
        # Tags of -100 do what the mask does.
        assert float(crf(emissions[None], tags[None]).detach()) == pytest.approx(np.log(p[y]), abs=1e-10)
    sets = torch.rand(1, len(mask), K) < 0.7
    sets[0, :, 1] = True
    inside = [s for y, s in scores.items() if all(sets[0, t, k] for t, k in zip(on, y, strict=True))]
    assert float(crf(emissions[None], sets, mask[None]).detach()) == pytest.approx(log_sum(inside) - log_z, abs=1e-10)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 1, 0, 0], [1], [1, 0, 1, 1, 0, 1]])
def test_all_queries_against_all_labellings(mask):
    mask = torch.tensor(mask).bool()
    check_all_queries(layer(), batch(len(mask)), mask)


@pytest.mark.parametrize(("holes", "cut"), [("link", False), ("cut", True)])
def test_masks_with_holes(holes, cut):
    """pytorch-crf #122: masks other than padding. Emissions of steps that are off can be NaN."""
    mask = torch.tensor([0, 1, 1, 0, 1, 0]).bool()
    emissions = batch(6)
    emissions[~mask] = torch.nan
    check_all_queries(layer(holes=holes), emissions, mask, cut)


def test_marginals_confidences_and_the_probability_of_the_decoded_tags():
    """pytorch-crf #21, #36, #48, #63 and #110: probabilities of tags at every step, and of the best sequence."""
    crf = lnz.torch.CRF(K)  # pytorch-crf's default layout
    emissions = torch.randn(5, 2, K)
    probabilities = crf.marginals(emissions)
    assert probabilities.shape == (5, 2, K)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, 2))
    tags = torch.tensor(crf.decode(emissions)).T
    confidence = probabilities.gather(-1, tags[..., None])[..., 0]
    joint = crf(emissions, tags, reduction="none").detach().exp()
    assert (joint[None] <= confidence + 1e-6).all()
    best = [row[0] for row in crf.n_best(emissions, 2)]
    assert [tags for tags, _ in best] == crf.decode(emissions)
    torch.testing.assert_close(torch.tensor([nats for _, nats in best]).exp(), joint)
    # Marginals are the gradient of log Z.
    leaf = emissions.clone().requires_grad_()
    crf.log_partition(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, probabilities)


def test_samples_have_the_probabilities_of_all_labellings():
    crf, emissions, n = layer(), batch(2, 3), 4000
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    samples = crf.sample(emissions, n, mask)
    assert samples.shape == (n, 2, 3)
    assert samples.dtype == torch.int64
    assert (samples[:, 1, 2] == -100).all()
    p = labellings(crf, emissions[0])
    log_z = log_sum(p.values())
    counts = dict.fromkeys(p, 0)
    for row in samples[:, 0].tolist():
        counts[tuple(row)] += 1
    expected = np.array([n * np.exp(s - log_z) for s in p.values()])
    chi2 = float(((np.array(list(counts.values())) - expected) ** 2 / expected).sum())
    assert chi2 < 26 + 5.5 * np.sqrt(2 * 26)  # a false alarm less than once in 1e5
    torch.manual_seed(3)
    first = crf.sample(emissions, 5)
    torch.manual_seed(3)
    assert torch.equal(first, crf.sample(emissions, 5))
    assert not torch.equal(first, crf.sample(emissions, 5))
    drawn = [crf.sample(emissions, 5, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*drawn)
    log_p = crf(emissions.repeat(n, 1, 1), samples.reshape(2 * n, 3), reduction="none").detach().reshape(n, 2)
    assert torch.allclose(
        -log_p.mean(0), crf.entropy(emissions, mask), rtol=0, atol=5 / np.sqrt(n) * float(log_p.std())
    )


@pytest.mark.parametrize("scheme", [lnz.crf.bio_constraints, lnz.crf.bioes_constraints])
def test_constraints(scheme):
    names = NAMES if scheme is lnz.crf.bio_constraints else ["O", "B", "S"]
    constraints = scheme(names)
    crf, emissions = layer(constraints=constraints), batch(1, 4)
    allowed, first, last = constraints
    scores = {
        y: s
        for y, s in labellings(crf, emissions[0]).items()
        if first[y[0]] and last[y[-1]] and all(allowed[a, b] for a, b in itertools.pairwise(y))
    }
    log_z = log_sum(scores.values())
    assert float(crf.log_partition(emissions).detach()) == pytest.approx(log_z, abs=1e-10)
    assert tuple(crf.decode(emissions)[0]) == max(scores, key=scores.get)
    several = crf.n_best(emissions, 200)[0]
    assert {tuple(tags) for tags, _ in several} == set(scores)
    assert all(tuple(y) in scores for y in crf.sample(emissions, 50)[:, 0].tolist())
    forbidden = next(y for y in itertools.product(range(K), repeat=4) if y not in scores)
    leaf = emissions.clone().requires_grad_()
    value = crf(leaf, torch.tensor([forbidden]))
    value.backward()
    assert value == -torch.inf
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))
    assert sorted(crf.state_dict()) == ["end_transitions", "start_transitions", "transitions"]


def test_empty_sequences_and_batches():
    crf, emissions = layer(), batch(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    tags = torch.randint(K, (3, 4))
    leaf = emissions.clone().requires_grad_()
    nats = crf(leaf, tags, mask, "none")
    nats.sum().backward()
    assert nats[1] == 0
    assert torch.equal(leaf.grad[1], torch.zeros(4, K).double())
    assert [len(row) for row in crf.decode(emissions, mask)] == [2, 0, 4]
    assert crf.n_best(emissions, 2, mask)[1] == [([], 0.0)]
    assert torch.equal(crf(emissions, torch.full((3, 4), -100), reduction="token_mean"), torch.tensor(0.0).double())
    for shape in [(2, 0), (0, 3), (0, 0)]:
        nothing = torch.zeros(*shape, K, dtype=torch.float64, requires_grad=True)
        value = crf(nothing, torch.zeros(shape, dtype=torch.int64), reduction="mean")
        value.backward()
        assert value == 0
        assert crf.marginals(nothing).shape == (*shape, K)
        assert crf.decode(nothing) == [[]] * shape[0]
        assert crf.sample(nothing, 3).shape == (3, *shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    crf, tags = lnz.torch.CRF(K, batch_first=True), torch.randint(K, (64, 300))
    emissions = (8 * torch.randn(64, 300, K)).to(dtype)
    leaf, wide = emissions.clone().requires_grad_(), emissions.float().requires_grad_()
    value, expected = crf(leaf, tags), crf(wide, tags)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float32
    assert leaf.grad.dtype == dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(leaf.grad, wide.grad.to(dtype))
    assert crf.to(dtype)(emissions, tags).isfinite()
    with torch.autocast("cpu", torch.bfloat16):
        assert crf(torch.nn.functional.linear(emissions, torch.eye(K).to(dtype)), tags).dtype == torch.float32


def test_gradcheck_in_double_precision():
    crf = layer()
    tags, mask = torch.randint(K, (2, 3)), torch.tensor([[1, 1, 1], [1, 0, 0]])
    tables = [p.detach().clone().requires_grad_() for p in crf.parameters()]
    names = [name for name, _ in crf.named_parameters()]

    def of_all(emissions, *values):
        return torch.func.functional_call(crf, dict(zip(names, values, strict=True)), (emissions, tags, mask, "none"))

    torch.autograd.gradcheck(of_all, (batch(2, 3).requires_grad_(), *tables))
    torch.autograd.gradcheck(lambda e: crf.entropy(e, mask), (batch(2, 3).requires_grad_(),))
    sets = torch.rand(2, 3, K) < 0.8
    sets[..., 0] = True
    torch.autograd.gradcheck(lambda e: crf(e, sets, mask, "none"), (batch(2, 3).requires_grad_(),))
    value = crf(batch(2, 3).requires_grad_(), tags)
    value.backward(retain_graph=True)
    value.backward()  # the kept gradient was not changed


def test_the_gradient_reaches_a_network_in_front_and_training_learns_the_tags():
    net = torch.nn.Sequential(torch.nn.Embedding(7, 8), torch.nn.Linear(8, K))
    crf = lnz.torch.CRF(K, batch_first=True)
    words = torch.randint(7, (20, 6))
    tags = words % K
    optimizer = torch.optim.Adam([*net.parameters(), *crf.parameters()], 0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -crf(net(words), tags, reduction="token_mean")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_copies_files_and_modes():
    crf = layer(constraints=lnz.crf.bio_constraints(NAMES), holes="cut")
    emissions, tags = batch(2, 3), torch.tensor([[0, 1, 2], [1, 2, 2]])
    expected = crf(emissions, tags).detach()
    file = io.BytesIO()
    torch.save(crf, file)
    file.seek(0)
    for other in (copy.deepcopy(crf), torch.load(file, weights_only=False)):
        assert torch.equal(other(emissions, tags), expected)
        assert repr(other) == repr(crf) == "CRF(num_tags=3, batch_first=True, holes='cut', constrained)"
    with torch.no_grad():
        assert torch.allclose(crf(emissions, tags), expected)
    with torch.inference_mode():
        assert torch.allclose(crf(emissions, tags), expected)
        assert crf.decode(emissions) == crf.eval().decode(emissions)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns about itself
def test_inside_torch_compile():
    crf, linear = lnz.torch.CRF(K, batch_first=True), torch.nn.Linear(4, K)

    def loss(x, tags):
        return -crf(linear(x).tanh(), tags)

    compiled = torch.compile(loss, backend="eager")
    for length in (5, 6, 5):
        x, tags = torch.randn(2, length, 4), torch.randint(K, (2, length))
        expected, found = loss(x, tags), compiled(x, tags)
        torch.testing.assert_close(found, expected)
        wanted = torch.autograd.grad(expected, linear.weight)
        torch.testing.assert_close(torch.autograd.grad(found, linear.weight), wanted)
    x = torch.randn(2, 5, 4)
    assert torch.compile(lambda x: crf.decode(linear(x)), backend="eager")(x) == crf.decode(linear(x))


def test_behind_a_data_loader():
    rows = [(torch.randn(n, K), torch.randint(K, (n,))) for n in (3, 1, 4, 2, 5)]

    def collate(rows):
        emissions, tags = zip(*rows, strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(emissions, batch_first=True), pad(tags, batch_first=True, padding_value=-100)

    crf = lnz.torch.CRF(K, batch_first=True)
    expected = sum(crf(e[None], t[None]).item() for e, t in rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of every fork; the workers do not use it
        loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate, num_workers=1)
        assert sum(crf(*both).item() for both in loader) == pytest.approx(expected, rel=1e-5)


def test_another_length_or_a_smaller_batch_compiles_nothing():
    asked = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: asked.append(name))
    request = "/jax/core/compile/backend_compile_duration"
    try:
        crf = lnz.torch.CRF(K, batch_first=True)

        def step(rows, length):
            emissions = torch.randn(rows, length, K, requires_grad=True)
            crf(emissions, torch.randint(K, (rows, length))).backward()
            crf.decode(emissions)
            crf.marginals(emissions)

        step(32, 32)
        assert asked.count(request) > 0
        asked.clear()
        for rows, length in [(32, 31), (17, 17), (25, 20), (32, 32)]:
            step(rows, length)
        assert asked.count(request) == 0
    finally:
        jax.monitoring.clear_event_listeners()
    assert len({bucket(n) for n in range(65, 513)}) == 12
    assert all(n <= bucket(n) <= max(2 * n, 1) for n in range(600))


def test_results_do_not_share_memory_with_what_the_caller_changes():
    crf, emissions, tags = layer(), batch(2, 8), torch.randint(K, (2, 8))
    leaf = emissions.clone().requires_grad_()
    expected = torch.autograd.grad(crf(leaf, tags), leaf)[0]
    value = crf(leaf, tags)
    with torch.no_grad():
        leaf.fill_(9)
    value.backward()
    assert torch.equal(leaf.grad, expected)
    leaf.grad.zero_()
    wide = torch.randn(2, 9, K + 1, dtype=torch.float64)
    assert torch.equal(crf(wide[:, 1:, 1:], tags), crf(wide[:, 1:, 1:].clone(), tags))  # memory that is not aligned


def _with_nan(crf):
    crf.transitions.data[1, 2] = torch.nan
    return batch(2, 4)


REFUSED = {
    "tag": (
        lambda c: c(batch(2, 4), torch.tensor([[0, 1, 2, 2], [0, 3, 0, 0]])),
        r"tags\[1, 1\] is 3, but tags are 0 to 2",
    ),
    "negative": (lambda c: c(batch(1, 2), torch.tensor([[0, -1]])), r"tags\[0, 1\] is -1"),
    "huge": (lambda c: c(batch(1, 2), torch.tensor([[0, 2**32]])), r"tags\[0, 1\] is 4294967296"),
    "tags' shape": (
        lambda c: c(batch(2, 4), torch.zeros(2, 3, dtype=torch.long)),
        r"tags must be integers of shape \(2, 4\)",
    ),
    "float tags": (lambda c: c(batch(2, 4), torch.zeros(2, 4)), "tags must be integers"),
    "sets' shape": (lambda c: c(batch(2, 4), torch.ones(2, 4).bool()), "sets of tags must be booleans"),
    "mask's shape": (
        lambda c: c.decode(batch(2, 4), torch.ones(4, 2)),
        r"mask has shape \(4, 2\), but must have shape \(2, 4\)",
    ),
    "float mask": (lambda c: c.decode(batch(2, 4), torch.ones(2, 4)), r"Pass booleans or integers: mask\.bool\(\)"),
    "first step": (lambda c: c.decode(batch(1, 2), torch.tensor([[0, 1]])), r"first step must be on .* holes=\"link\""),
    "NaN": (
        lambda c: c(torch.full((1, 2, K), torch.nan), torch.zeros(1, 2).long()),
        r"emissions\[0, 0, 0\] is nan\. Look for",
    ),
    "infinity": (lambda c: c.decode(torch.full((1, 2, K), torch.inf)), r"emissions\[0, 0, 0\] is inf"),
    "parameter": (lambda c: c(_with_nan(c), torch.zeros(2, 4).long()), r"transitions\[1, 2\] is nan"),
    "parameter, query": (lambda c: c.marginals(_with_nan(c)), r"transitions\[1, 2\] is nan"),
    "device": (lambda c: c.decode(torch.zeros(1, 2, K, device="meta")), "on meta, a device that JAX cannot see"),
    "emissions": (lambda c: c.decode(torch.zeros(1, 2, K + 1)), r"shape \(batch, length, 3\)"),
    "integers": (lambda c: c.decode(torch.zeros(1, 2, K).long()), "emissions must be floats"),
    "reduction": (
        lambda c: c(batch(1, 2), torch.zeros(1, 2).long(), reduction="max"),
        "reduction must be one of none, sum",
    ),
    "impossible": (lambda c: c.decode(torch.full((2, 2, K), -torch.inf)), "no labelling of sequence 0 is possible"),
    "impossible sum": (
        lambda c: c.entropy(torch.full((2, 2, K), -torch.inf)),
        "no labelling of sequence 0 is possible",
    ),
    "n": (lambda c: c.n_best(batch(1, 2), 0), "n must be"),
    "num_tags": (lambda c: lnz.torch.CRF(0), "num_tags must be"),
    "holes": (lambda c: lnz.torch.CRF(2, holes="fill"), "holes must be"),
    "constraints": (
        lambda c: lnz.torch.CRF(2, constraints=lnz.crf.bio_constraints(NAMES)),
        "allowed_transitions of 2 tags",
    ),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused_in_one_line(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as found:
        call(layer())
    assert "\n" not in str(found.value)


def test_steps_that_are_off_can_hold_anything():
    crf = layer()
    emissions, tags, mask = batch(1, 3), torch.tensor([[0, 1, 99]]), torch.tensor([[1, 1, 0]])
    emissions[0, 2] = torch.nan
    leaf = emissions.clone().requires_grad_()
    value = crf(leaf, tags, mask)
    value.backward()
    assert torch.equal(value, crf(emissions[:, :2], tags[:, :2]))
    assert torch.equal(leaf.grad[0, 2], torch.zeros(K).double())


def test_with_jax_as_it_is_by_default(single_precision):
    """float64 off, as users have it: float32 within its precision, and float64 all the same."""
    pytest.importorskip("torchcrf")
    printed = single_precision("""
import torch, torchcrf, lnz
torch.manual_seed(0)
theirs, ours = torchcrf.CRF(5, batch_first=True), lnz.torch.CRF(5, batch_first=True)
ours.load_state_dict(theirs.state_dict())
emissions, tags = torch.randn(4, 30, 5), torch.randint(5, (4, 30))
mask = torch.arange(30)[None] < torch.tensor([30, 3, 17, 1])[:, None]
for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
    found = []
    for crf in (theirs.to(dtype), ours.to(dtype)):
        leaf = emissions.to(dtype).detach().requires_grad_()
        value = crf(leaf, tags, mask, "none")
        value.sum().backward()
        found.append((value.detach(), leaf.grad))
    assert all(a.dtype == dtype for a in found[1])
    print(all(torch.allclose(a, b, rtol=bar, atol=bar) for a, b in zip(*found)))
""")
    assert printed.split() == ["True", "True"]
