"""Names as headings."""

import pytest

from workbench.report.environment import heading


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("explained_variance", "Explained variance"),
        ("mse", "MSE"),
        ("how-to-read", "How to read"),
        ("auc.in_string.k1", "auc.in_string.k1"),
        ("units-of-blocks.2.mlp.hook_post", "Units of blocks.2.mlp.hook_post"),
        ("best-units", "Best units"),
    ],
)
def test_a_name_is_read_as_words_and_what_has_dots_stays(name, words):
    assert heading(name) == words
