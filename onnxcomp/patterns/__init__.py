"""Rewrites written as two small functions: what to look for, and what to put in its place.

    @rewrite_rule
    def swish(op, x):
        return op.Mul(x, op.Sigmoid(x))

    @swish.becomes
    def _(op, x):
        return op.Swish(x)

Parameters are values that may be anything. A parameter whose default is `constant` is one that is the
same in every run, one whose default is None may be left out by the model. Numbers and lists in a
pattern are constants with these contents, as near as their type gets. Operands of Add, Mul and their
like are tried in both orders. Attributes that a pattern does not mention must have their default
values; a parameter in the place of an attribute takes whatever it is. With `_attributes="any"` the
others may be anything too, `_domain` names another operator set, `_outputs` says how many outputs an
operator has, and `_name` lets the other functions see the node.

What a rule does not say is looked after: what lies between may not be read from elsewhere nor be an
output of the graph, all nodes stand in one graph, a constant is none that a caller may override, and
the operators of the replacement must be in the model's operator set.
"""

from onnxcomp.patterns.building import Operand
from onnxcomp.patterns.files import load_rules
from onnxcomp.patterns.rewriting import RewriteRule, rewrite_rule, rule_pass
from onnxcomp.patterns.terms import constant

__all__ = ["Operand", "RewriteRule", "constant", "load_rules", "rewrite_rule", "rule_pass"]
