"""The paper's protocol runs on models of the published shapes; with random weights it finds nothing."""

import numpy as np
import pytest

from workbench.errors import UserError
from workbench.plugins.circuit.known import published
from workbench.plugins.circuit.paper import run_trials, with_beginning

RECORDS = {(each["task"], each["labels"]): each for each in published()}


SHAPES = [
    pytest.param("docstring", 4, 8, marks=pytest.mark.slow),
    pytest.param("ioi", 12, 12, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("task", "layers", "heads"), SHAPES)
def test_random_weights_of_the_published_shape_give_no_circuit(task, layers, heads, random_subject):
    subject = random_subject(n_layers=layers, n_heads=heads, d_model=4 * heads, d_head=4, d_mlp=0)
    prompts = small_prompts(subject)
    found = run_trials(subject, RECORDS[task, "acdc"], prompts, trials=2, scaled=True)
    assert found.node.shape == found.node_via_pairs.shape == (2,)
    assert ((found.node >= 0) & (found.node <= 1)).all()
    again = run_trials(subject, RECORDS[task, "acdc"], prompts, trials=2, scaled=True)
    assert np.array_equal(found.node, again.node)


def small_prompts(subject):
    from workbench.plugins.circuit.head_outputs import Tokens
    from workbench.plugins.circuit.pairs import Pairs
    from workbench.plugins.circuit.tasks.task import Prompts

    drawn = np.random.default_rng(0).integers(0, 10, (2, 12, 6)).tolist()
    return Prompts(Pairs.of(*drawn, [[1]] * 12, [[2]] * 12), Tokens.of(drawn[1]), "")


def test_another_shape_is_refused(random_subject):
    subject = random_subject()
    with pytest.raises(UserError, match="of gpt2, 12 layers of 12 heads; this subject has 2 of 4"):
        run_trials(subject, RECORDS["ioi", "acdc"], small_prompts(subject))


def test_the_beginning_is_put_where_the_tokenizer_does_not():
    class Tokenizer:
        bos_token_id = 7

    class Subject:
        tokenizer = Tokenizer()

    from workbench.plugins.circuit.head_outputs import Tokens

    tokens = Tokens.of([[1, 2, 3], [4]])
    begun = with_beginning(Subject(), tokens)
    assert begun.prompts(0, 2) == [[7, 1, 2, 3], [7, 4]]
    assert with_beginning(Subject(), begun) is begun
