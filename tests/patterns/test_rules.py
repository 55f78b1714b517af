"""Rules as users write them: what they match, what they make, and what they rightly leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import UserError
from onnxcomp.patterns import RewriteRule, constant, rewrite_rule, rule_pass
from onnxcomp.pipeline import Pipeline
from tests.helpers.check import assert_refuses, assert_rewrites, assert_unchanged


def made(pattern: Any, replacement: Any, check: Any = None) -> Any:
    """A pass of one rule."""
    return rule_pass("own", rewrite_rule(replacement=replacement, check=check)(pattern))()


def why(rewrite: Any, graph: str) -> str:
    """Why a rule nearly applied."""
    outcome = assert_refuses(rewrite, graph, code="RUL101")
    return outcome.diagnostics[0].message


SWISH = made(lambda op, x: op.Mul(x, op.Sigmoid(x)), lambda op, x: op.HardSwish(x))
DOUBLE = made(lambda op, x: op.Abs(op.Abs(x)), lambda op, x: op.Abs(x))


def test_a_chain_becomes_one_node() -> None:
    assert_rewrites(
        DOUBLE,
        before="g (float[3] x) => (float[3] y) { a = Abs (x)  y = Abs (a) }",
        after="g (float[3] x) => (float[3] y) { y = Abs (x) }",
    )


def test_rules_work_on_their_own_results() -> None:
    assert_rewrites(
        DOUBLE,
        before="g (float[3] x) => (float[3] y) { a = Abs (x)  b = Abs (a)  c = Abs (b)  y = Abs (c) }",
        after="g (float[3] x) => (float[3] y) { y = Abs (x) }",
    )


@pytest.mark.parametrize("product", ["Mul (x, s)", "Mul (s, x)"])
def test_operands_of_commutative_operators_are_tried_in_both_orders(product: str) -> None:
    assert_rewrites(
        made(lambda op, x: op.Mul(x, op.Neg(x)), lambda op, x: op.Neg(op.Mul(x, x))),
        before=f"g (float[3] x) => (float[3] y) {{ s = Neg (x)  y = {product} }}",
        after="g (float[3] x) => (float[3] y) { m = Mul (x, x)  y = Neg (m) }",
    )


def test_operands_of_others_are_not() -> None:
    rewrite = made(lambda op, x: op.Sub(x, op.Neg(x)), lambda op, x: op.Add(x, x))
    assert_unchanged(rewrite, "g (float[3] x) => (float[3] y) { s = Neg (x)  y = Sub (s, x) }")


def test_one_parameter_is_one_value() -> None:
    assert_unchanged(
        made(lambda op, x: op.Mul(x, op.Neg(x)), lambda op, x: op.Neg(op.Mul(x, x))),
        "g (float[3] x, float[3] z) => (float[3] y) { s = Neg (z)  y = Mul (x, s) }",
    )


# -- values between -----------------------------------------------------------------------------


def test_what_is_read_elsewhere_stays_and_that_is_said() -> None:
    graph = """
        g (float[3] x) => (float[3] y, float[3] z) {
          [inner] a = Abs (x)
          [outer] y = Abs (a)
          [other] z = Neg (a)
        }
    """
    assert why(DOUBLE, graph) == 'Abs "inner" is also read by Neg "other"'


def test_an_output_of_the_graph_between_stays() -> None:
    graph = (
        "g (float[3] x) => (float[3] y, float[3] a) { [inner] a = Abs (x)  [outer] y = Abs (a) }"
    )
    assert why(DOUBLE, graph) == 'the result of Abs "inner" is an output of the graph'


def test_a_body_that_captures_the_value_between_reads_it_too() -> None:
    graph = """
        g (bool c, float[3] x) => (float[3] y, float[3] z) {
          [inner] a = Abs (x)
          [outer] y = Abs (a)
          z = If (c) <
            then_branch = yes () => (float[3] t) { t = Neg (a) },
            else_branch = no () => (float[3] e) { e = Identity (x) }
          >
        }
    """
    assert why(DOUBLE, graph).startswith('Abs "inner" is also read by Neg')


def test_a_value_that_the_pattern_reads_a_second_time_stays() -> None:
    rewrite = made(lambda op, x, w: op.Add(op.Abs(x), w), lambda op, x, w: op.Max(x, w))
    assert_unchanged(rewrite, "g (float[3] x) => (float[3] y) { a = Abs (x)  y = Add (a, a) }")


def test_nodes_in_different_graphs_are_not_one_pattern() -> None:
    graph = """
        g (bool c, float[3] x) => (float[3] z) {
          a = Abs (x)
          z = If (c) <
            then_branch = yes () => (float[3] t) { t = Abs (a) },
            else_branch = no () => (float[3] e) { e = Identity (x) }
          >
        }
    """
    assert_unchanged(DOUBLE, graph)


def test_bodies_and_functions_are_rewritten() -> None:
    graph = """
        <ir_version: 10, opset_import: ["" : 21, "my" : 1]>
        g (bool c, float[3] x) => (float[3] z) {{
          w = my.f (x)
          z = If (c) <
            then_branch = yes () => (float[3] t) {{ {0} t = Abs (a) }},
            else_branch = no () => (float[3] e) {{ e = Identity (w) }}
          >
        }}
        <domain: "my", opset_import: ["" : 21]>
        f (x) => (y) {{ {1} }}
    """
    assert_rewrites(
        DOUBLE,
        before=graph.format("b = Abs (x) a = Abs (b)", "a = Abs (x) y = Abs (a)"),
        after=graph.format("a = Neg (x)", "y = Abs (x)").replace(
            "a = Neg (x) t = Abs (a)", "t = Abs (x)"
        ),
    )


# -- constants ----------------------------------------------------------------------------------

SCALED = made(
    lambda op, x: op.Mul(op.Abs(x), 0.1),
    lambda op, x: op.Abs(op.Mul(x, 0.1)),
)


@pytest.mark.parametrize("number", ["float k = {0.1}", "float[1] k = {0.1}", "double k = {0.1}"])
def test_numbers_are_constants_as_near_as_their_type_gets(number: str) -> None:
    kind = number.split()[0].partition("[")[0]
    outcome = assert_rewrites(
        SCALED,
        before=f"g ({kind}[3] x) => ({kind}[3] y) <{number}> {{ a = Abs (x)  y = Mul (a, k) }}",
        after=f"g ({kind}[3] x) => ({kind}[3] y) <{number}, {kind} n = {{0.1}}> "
        "{ a = Mul (x, n)  y = Abs (a) }",
    )
    assert outcome.stats["<lambda>".strip("<>")] == 1


def test_another_number_is_told() -> None:
    graph = "g (float[3] x) => (float[3] y) <float k = {0.5}> { a = Abs (x)  [m] y = Mul (a, k) }"
    assert why(SCALED, graph) == 'the constant of Mul "m" is 0.5, not 0.1'


def test_a_number_that_widens_the_result_is_refused() -> None:
    graph = "g (float[3] x) => (float[1, 3] y) <float[1, 1] k = {0.1}> { a = Abs (x)  [m] y = Mul (a, k) }"
    assert "more dimensions" in why(SCALED, graph)


def test_a_number_that_a_caller_may_override_is_none() -> None:
    graph = (
        "g (float[3] x, float k) => (float[3] y) <float k = {0.1}> { a = Abs (x)  y = Mul (a, k) }"
    )
    assert_unchanged(SCALED, graph)


def test_a_position_is_no_number_of_any_rank() -> None:
    rewrite = made(lambda op, x: op.Neg(op.Gather(x, 0)), lambda op, x: op.Gather(op.Neg(x), 0))
    graph = (
        "g (float[3] x) => (float[{0}] y) <int64{1} i = {{0}}> {{ a = Gather (x, i)  y = Neg (a) }}"
    )
    outcome = assert_refuses(rewrite, graph.format("1", "[1]"), code="RUL101")
    assert "more dimensions" in outcome.diagnostics[0].message
    after = "g (float[3] x) => (float y) <int64 i = {0}, int64 j = {0}> { a = Neg (x)  y = Gather (a, j) }"
    assert_rewrites(rewrite, before=graph.format("", "").replace("float[]", "float"), after=after)


def test_a_tolerance_of_its_own() -> None:
    rewrite = made(
        lambda op, x: op.Mul(op.Abs(x), constant(0.1, rtol=0.1)), lambda op, x: op.Abs(x)
    )
    graph = "g (float[3] x) => (float[3] y) <float k = {%s}> { a = Abs (x)  y = Mul (a, k) }"
    from tests.helpers import text

    changed = [
        Pipeline((rewrite,)).run(text.model(graph % number)).changed
        for number in ("0.1", "0.105", "0.12", "-0.1")
    ]
    assert changed == [True, True, False, False]


def test_lists_and_arrays_are_compared_with_their_shape() -> None:
    rewrite = made(
        lambda op, x: op.Abs(op.Reshape(x, [-1])), lambda op, x: op.Reshape(op.Abs(x), [-1])
    )
    graph = "g (float[2, 3] x) => (float[{1}] y) <int64[{2}] s = {{{0}}}> {{ a = Reshape (x, s)  y = Abs (a) }}"
    assert_rewrites(
        rewrite,
        before=graph.format("-1", "6", 1),
        after="g (float[2, 3] x) => (float[6] y) <int64[1] s = {-1}, int64[1] t = {-1}> "
        "{ a = Abs (x)  y = Reshape (a, t) }",
    )
    assert_unchanged(rewrite, graph.format("3, 2", "3, 2", 2))


def test_a_constant_parameter_and_what_its_contents_become() -> None:
    def pattern(op: Any, x: Any, a: Any = constant, b: Any = constant) -> Any:
        return op.Mul(op.Mul(x, a), b)

    rewrite = made(
        pattern,
        lambda op, x, a, b: op.Mul(x, a.array * b.array),
        lambda a, b: a.array.shape == b.array.shape or "the factors differ in shape",
    )
    head = "g (float[3] x) => (float[3] y) <float[3] a = {1, 2, 4}, float[%s] b = {%s}"
    body = "{ m = Mul (a, x)  y = Mul (m, b) }"
    assert_rewrites(
        rewrite,
        before=head % (3, "2, 2, 0.5") + "> " + body,
        after=head % (3, "2, 2, 0.5") + ", float[3] c = {2, 4, 2}> { y = Mul (x, c) }",
    )
    assert why(rewrite, head % (1, "2") + "> " + body) == "the factors differ in shape"
    assert_unchanged(
        rewrite, "g (float[3] x, float[3] a) => (float[3] y) { m = Mul (a, x)  y = Mul (m, a) }"
    )


# -- attributes ---------------------------------------------------------------------------------


def test_attributes_that_are_not_mentioned_have_their_default() -> None:
    rewrite = made(
        lambda op, x: op.Neg(op.ReduceSum(x, [0])), lambda op, x: op.ReduceSum(op.Neg(x), [0])
    )
    graph = "g (float[2, 3] x) => (float[{1}3] y) <int64[1] a = {{0}}> {{ [r] s = ReduceSum{0} (x, a)  y = Neg (s) }}"
    after = """
        g (float[2, 3] x) => (float[1, 3] y) <int64[1] a = {0}, int64[1] b = {0}> {
          n = Neg (x)
          y = ReduceSum (n, b)
        }
    """
    for text in ("", " <keepdims = 1>"):
        assert_rewrites(rewrite, before=graph.format(text, "1, "), after=after)
    assert why(rewrite, graph.format(" <keepdims = 0>", "")) == 'ReduceSum "r" has keepdims=0'


def test_attributes_are_compared_and_taken_over() -> None:
    def pattern(op: Any, x: Any, perm: Any) -> Any:
        return op.Relu(op.Transpose(x, perm=perm))

    rewrite = made(pattern, lambda op, x, perm: op.Transpose(op.Relu(x), perm=perm))
    for attribute in (" <perm = [1, 0]>", ""):
        assert_rewrites(
            rewrite,
            before=f"g (float[2, 3] x) => (float[3, 2] y) {{ t = Transpose{attribute} (x)  y = Relu (t) }}",
            after=f"g (float[2, 3] x) => (float[3, 2] y) {{ r = Relu (x)  y = Transpose{attribute} (r) }}",
        )


def test_any_attributes_and_a_node_like_another() -> None:
    def pattern(op: Any, x: Any, w: Any) -> Any:
        return op.Neg(op.Conv(x, w, _attributes="any", _name="conv"))

    rewrite = made(pattern, lambda op, x, w, conv: op.Conv(op.Neg(x), w, _like=conv))
    assert_rewrites(
        rewrite,
        before="""g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 1, 3, 3] w> {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Neg (c) }""",
        after="""g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 1, 3, 3] w> {
            c = Neg (x)  y = Conv <pads = [1, 1, 1, 1]> (c, w) }""",
    )


def test_attributes_bound_by_the_caller_of_a_function_are_unknown() -> None:
    rewrite = made(
        lambda op, x, alpha: op.Neg(op.Elu(x, alpha=alpha)),
        lambda op, x, alpha: op.Elu(x, alpha=alpha),
    )
    graph = """
        <ir_version: 10, opset_import: ["" : 21, "my" : 1]>
        g (float[3] x) => (float[3] z) { z = my.f <a = 2.0> (x) }
        <domain: "my", opset_import: ["" : 21]>
        f <a> (x) => (y) { e = Elu <alpha: float = @a> (x)  y = Neg (e) }
    """
    assert_unchanged(rewrite, graph)


# -- inputs and outputs -------------------------------------------------------------------------


def test_inputs_may_be_left_out_where_the_pattern_says_so() -> None:
    def pattern(op: Any, x: Any, low: Any, high: Any = None) -> Any:
        return op.Neg(op.Clip(x, low, high))

    rewrite = made(
        pattern, lambda op, x, low, high: op.Neg(op.Max(x, low)), lambda high: high is None
    )
    head = "g (float[3] x) => (float[3] y) <float a = {0}, float b = {1}> "
    assert_rewrites(
        rewrite,
        before=head + "{ c = Clip (x, a)  y = Neg (c) }",
        after=head + "{ c = Max (x, a)  y = Neg (c) }",
    )
    assert_unchanged(rewrite, head + "{ c = Clip (x, a, b)  y = Neg (c) }")
    assert_unchanged(rewrite, head + "{ c = Clip (x)  y = Neg (c) }")


def test_several_outputs_of_one_operator() -> None:
    def pattern(op: Any, x: Any) -> Any:
        a, b = op.Split(x, _outputs=2, num_outputs=2)
        return op.Concat(a, b, axis=0)

    assert_rewrites(
        made(pattern, lambda op, x: op.Identity(x)),
        before="""g (float[4] x) => (float[4] y) {
            a, b = Split <num_outputs = 2> (x)  y = Concat <axis = 0> (a, b) }""",
        after="g (float[4] x) => (float[4] y) { y = Identity (x) }",
    )


PAIR = made(
    lambda op, x: (op.Sin(x), op.Cos(x)),
    lambda op, x: (op.Neg(op.Sin(op.Neg(x))), op.Cos(op.Neg(x))),
)


def test_several_results() -> None:
    assert_rewrites(
        PAIR,
        before="g (float[3] x) => (float[3] y) { s = Sin (x)  t = Relu (s)  c = Cos (x)  y = Add (t, c) }",
        after="""g (float[3] x) => (float[3] y) {
            a = Neg (x)  b = Sin (a)  s = Neg (b)  d = Neg (x)  c = Cos (d)  t = Relu (s)  y = Add (t, c) }""",
    )


def test_results_that_wait_for_each_other_are_refused() -> None:
    rewrite = made(
        lambda op, x, z: (op.Sin(x), op.Mul(op.Cos(x), z)),
        lambda op, x, z: (op.Neg(op.Sin(op.Neg(x))), op.Mul(z, op.Cos(op.Neg(x)))),
    )
    graph = """g (float[3] x) => (float[3] y) {
        s = Sin (x)  z = Relu (s)  c = Cos (x)  y = Mul (c, z) }"""
    assert "made only after" in why(rewrite, graph)


def test_a_mask_that_somebody_reads_is_part_of_the_pattern() -> None:
    rewrite = made(lambda op, x: op.Neg(op.Dropout(x)), lambda op, x: op.Neg(x))
    graph = "g (float[3] x) => (float[3] y{0}) {{ d, m = Dropout (x)  y = Neg (d) }}"
    assert_unchanged(rewrite, graph.format(", bool[3] m"))


def test_a_result_that_is_an_output_keeps_its_name_and_goes_to_an_input() -> None:
    rewrite = made(lambda op, x: op.Neg(op.Neg(x)), lambda op, x: x)
    assert_rewrites(
        rewrite,
        before="g (float[3] x) => (float[3] y) { a = Neg (x)  y = Neg (a) }",
        after="g (float[3] x) => (float[3] y) { y = Identity (x) }",
    )
    # This would only put an Identity in the place of an Identity.
    assert_unchanged(
        made(lambda op, x: op.Identity(x), lambda op, x: x),
        "g (float[3] x) => (float[3] y) { y = Identity (x) }",
    )


def test_a_rule_that_feeds_on_itself_ends() -> None:
    rewrite = made(lambda op, x: op.Relu(x), lambda op, x: op.Relu(op.Relu(x)))
    from tests.helpers import text

    model = text.model("g (float[3] x) => (float[3] y) { y = Relu (x) }")
    result = Pipeline((rewrite,)).run(model)
    assert len(list(result.model.nodes())) == 2


# -- operator sets ------------------------------------------------------------------------------


def test_an_operator_that_the_model_does_not_have_yet_is_told() -> None:
    graph = '<ir_version: 8, opset_import: ["" : 13]> g (float[3] x) => (float[3] y) { s = Sigmoid (x) y = Mul (x, s) }'
    outcome = assert_refuses(SWISH, graph, code="RUL101")
    assert outcome.diagnostics[0].message == "opset 13 has no HardSwish"
    assert "--opset 14" in outcome.diagnostics[0].hint


def test_operators_of_other_domains_are_imported() -> None:
    rewrite = made(
        lambda op, x, w: op.Relu(op.MatMul(x, w)),
        lambda op, x, w: op.Special(x, w, _domain="my.own", activation="Relu"),
    )
    head = "g (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w> "
    own = '<ir_version: 10, opset_import: ["" : 21, "my.own" : 1]> '
    assert_rewrites(
        rewrite,
        before=head + "{ m = MatMul (x, w)  y = Relu (m) }",
        after=own + head + '{ y = my.own.Special <activation = "Relu"> (x, w) }',
        runtimes=(),
        feeds=(),
        full_check=False,
    )
    back = made(
        lambda op, x, w: op.Special(x, w, _domain="my.own", activation="Relu"),
        lambda op, x, w: op.Relu(op.MatMul(x, w)),
    )
    assert_rewrites(
        back,
        before=own + head + '{ y = my.own.Special <activation = "Relu"> (x, w) }',
        after=own + head + "{ m = MatMul (x, w)  y = Relu (m) }",
        runtimes=(),
        feeds=(),
        full_check=False,
    )


# -- mistakes in rules --------------------------------------------------------------------------


def broken(pattern: Any, replacement: Any = None, check: Any = None) -> str:
    with pytest.raises(UserError) as caught:
        RewriteRule(pattern, replacement, check, name="r")
    return str(caught.value)


def test_mistakes_in_a_pattern_are_named_when_it_is_defined() -> None:
    assert broken(lambda: None).startswith("rule r: the pattern takes the operators")
    assert broken(lambda op, x: x) == "rule r: the pattern must return what operators make"
    assert broken(lambda op, x: op.Relu("x")).startswith("rule r: Relu gets a str")
    assert broken(lambda op, x: op.Relu(x, _output=2)).startswith(
        "rule r: Relu has no option _output"
    )
    assert broken(lambda op, x=3: op.Relu(x)).startswith("rule r: the default of x means nothing")
    assert broken(lambda op, x: op.Relu(x) + 1).startswith("rule r: the pattern raises TypeError")
    assert "x is both" in broken(lambda op, x: op.Relu(x, alpha=x))

    def lost(op: Any, x: Any) -> Any:
        op.Abs(x)
        return op.Relu(x)

    assert broken(lost) == "rule r: nothing in the pattern reads its Abs"
    unknown = broken(lambda op, x: op.Relu(x), lambda op, z: op.Abs(z))
    assert (
        unknown == "rule r: the replacement asks for z, which the pattern does not have (it has x)"
    )


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (None, "has no replacement"),
        (lambda op, x: op.Abs(x) + 1, "the replacement raises TypeError"),
        (lambda op, x: op.Abss(x), 'there is no operator "Abss"'),
        (lambda op, x: op.Abs(x, x), "does not take 2 inputs"),
        (lambda op, x: op.Abs(x, alpha=1), "has no attribute alpha"),
        (lambda op, x: (x, x), "must return as many values"),
        (lambda op, x: 3, "must return as many values"),
    ],
)
def test_mistakes_in_a_replacement_are_named_when_it_is_used(replacement: Any, said: str) -> None:
    from tests.helpers import text

    rewrite = made(lambda op, x: op.Relu(x), replacement)
    model = text.model("g (float[3] x) => (float[3] y) { y = Relu (x) }")
    with pytest.raises(UserError, match=said):
        Pipeline((rewrite,)).run(model)


def test_numbers_take_the_type_that_the_operator_asks_for() -> None:
    rewrite = made(
        lambda op, x: op.Neg(op.Relu(x)),
        lambda op, x: op.Neg(op.Clip(op.Unsqueeze(x, [0]), 0, None)),
    )
    from tests.helpers import text

    for kind, dtype in (("float16", np.float16), ("double", np.float64)):
        model = text.model(f"g ({kind}[3] x) => ({kind}[N, M] y) {{ a = Relu (x)  y = Neg (a) }}")
        got = Pipeline((rewrite,)).run(model).model.graph.initializers.values()
        assert [
            value.const_value.numpy().dtype for value in got if value.const_value is not None
        ] == [
            np.dtype(np.int64),
            np.dtype(dtype),
        ]
