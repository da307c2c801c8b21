from __future__ import annotations

import math

import pytest

from workbench.engines.labels import LabelTree
from workbench.errors import InputError


def test_shared_beginnings_are_one_node() -> None:
    tree = LabelTree.build(["ab", "ac", "a", "d"], [[1, 2], [1, 3], [1], [4]], width=128)
    assert [(node.prefix, node.children) for node in tree.nodes] == [((), (1, 4)), ((1,), (2, 3))]
    assert tree.depth == 2
    half = math.log(0.5)
    scores = {((), 1): half, ((), 4): half, ((1,), 2): half, ((1,), 3): 2 * half}
    assert tree.total(scores) == (2 * half, 3 * half, half, half)


def test_wide_nodes_are_split() -> None:
    tree = LabelTree.build([str(i) for i in range(300)], [[i] for i in range(300)], width=128)
    assert [len(node.children) for node in tree.nodes] == [128, 128, 44]


def test_labels_without_tokens_or_with_the_same_ones() -> None:
    with pytest.raises(InputError, match="no tokens"):
        LabelTree.build(["x"], [[]], 128)
    with pytest.raises(InputError, match="'x' and 'y' have the same tokens"):
        LabelTree.build(["x", "y"], [[1], [1]], 128)
