"""lnz.torch.SemiMarkovCRF and lnz.torch.RandomField against sums over all segmentations and labellings."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import lnz


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(2)


def random_parameters(module):
    for values in module.parameters():
        torch.nn.init.normal_(values)
    return module.double()


def segmentations(length, longest, k):
    if length == 0:
        yield ()
    for d in range(1, min(length, longest) + 1):
        for rest in segmentations(length - d, longest, k):
            for label in range(k):
                yield ((d, label), *rest)


@torch.no_grad()
def score(crf, segments, parts):
    end, total, before = -1, 0.0, None
    for d, label in parts:
        end += d
        total += float(segments[end, d - 1, label])
        total += float(crf.start_transitions[label] if before is None else crf.transitions[before, label])
        before = label
    return total + (float(crf.end_transitions[before]) if parts else 0.0)


def test_segments_against_all_segmentations():
    crf = random_parameters(lnz.torch.SemiMarkovCRF(2))
    lengths = torch.tensor([4, 2, 0])
    segments = torch.randn(3, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    chosen = [((2, 1), (1, 0), (1, 0)), ((2, 0),), ()]
    states = crf.encode([([d for d, _ in parts], [k for _, k in parts]) for parts in chosen], 4)
    found = crf(segments, states, lengths, "none")
    marginals = crf.marginals(segments, lengths)
    for b, length in enumerate(lengths.tolist()):
        scores = {parts: score(crf, segments[b].detach(), parts) for parts in segmentations(length, 3, 2)}
        log_z = float(torch.logsumexp(torch.tensor(list(scores.values()), dtype=torch.float64), 0))
        assert float(found[b].detach()) == pytest.approx(scores[chosen[b]] - log_z, abs=1e-10)
        expected = np.zeros((4, 3, 2))
        for parts, s in scores.items():
            end = -1
            for d, label in parts:
                end += d
                expected[end, d - 1, label] += np.exp(s - log_z)
        np.testing.assert_allclose(marginals[b], expected, atol=1e-10)
    torch.autograd.gradcheck(lambda x: crf(x, states, lengths), (segments,))
    with pytest.raises(ValueError, match="states of sequence 1 are impossible"):
        crf(segments, states, torch.tensor([4, 3, 0]))
    with pytest.raises(ValueError, match="every segment needs a duration"):
        crf.encode([([2, 3], [0, 1])], 4)
    with pytest.raises(ValueError, match="lengths must be 3 integers from 0 to 4"):
        crf(segments, states, torch.tensor([5, 0, 0]))


@pytest.mark.parametrize("structure", [lnz.crf.Grid((2, 3)), lnz.crf.Tree([-1, 0, 1, 1, 3])])
def test_fields_against_all_labellings(structure):
    k = 2
    field = random_parameters(lnz.torch.RandomField(structure, k))
    n = int(np.prod(structure.shape))
    unary = torch.randn(2, *structure.shape, k, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(k, (2, *structure.shape))
    labels[0].view(-1)[1] = -100
    group = np.repeat(np.arange(len(structure.groups)), structure.groups)
    edges = np.asarray(structure.edges).reshape(-1, 2)
    found = field(unary, labels, reduction="none")
    for b in range(2):
        on = [i for i in range(n) if labels[b].reshape(-1)[i] >= 0]
        scores = {}
        for y in itertools.product(range(k), repeat=len(on)):
            tags = dict(zip(on, y, strict=True))
            total = sum(float(unary[b].detach().reshape(n, k)[i, t]) for i, t in tags.items())
            for g, (i, j) in zip(group, edges, strict=True):
                if i in tags and j in tags:
                    total += float(field.pairwise.detach()[g, tags[i], tags[j]])
            scores[y] = total
        log_z = float(torch.logsumexp(torch.tensor(list(scores.values()), dtype=torch.float64), 0))
        mine = tuple(labels[b].reshape(-1)[on].tolist())
        assert float(found[b].detach()) == pytest.approx(scores[mine] - log_z, abs=1e-9)
    mean = field.marginals(unary)
    assert torch.allclose(mean.sum(-1), torch.ones(2, *structure.shape, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: field(x, labels), (unary,))
    single = field.float()(unary.detach().float(), labels, reduction="none")
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), found, rtol=1e-5, atol=1e-5, check_dtype=False)
    labels.view(-1)[0] = k
    with pytest.raises(ValueError, match="but labels are 0 to 1"):
        field(unary, labels)


def test_with_jax_as_it_is_by_default(single_precision):
    printed = single_precision("""
import torch, lnz
field = lnz.torch.RandomField(lnz.crf.Grid((2, 3)), 4)
print(round(field.log_partition(torch.zeros(3, 2, 3, 4))[1].item(), 3), round(field.log_partition(torch.zeros(1, 2, 3, 4).double()).item(), 3))
crf = lnz.torch.SemiMarkovCRF(2)
print(round(crf.log_partition(torch.zeros(1, 4, 3, 2)).exp().item()), round(crf.log_partition(torch.zeros(1, 4, 3, 2).double()).exp().item()))
""")
    assert printed.split() == ["8.318", "8.318", "52", "52"]
