"""Whether a cell ends in an assertion that a wrong value would fail.

Counted is a last statement `assert test` whose test depends on a name that the cell did not just
set to a constant and is not true whatever that name holds, or a call of `expect` on such a value.
"""

from __future__ import annotations

import ast
import builtins
from typing import TypeGuard

_BUILTINS = frozenset(dir(builtins))


def can_fail(body: list[ast.stmt]) -> bool:
    """Whether the last of a cell's statements is an assertion that can fail.

    Args:
        body: The cell's statements, in order.
    """
    if not body:
        return False
    fixed = _constants(body[:-1])
    match body[-1]:
        case ast.Assert(test=test):
            return bool(_depends(test) - fixed) and _truth(test) is not True
        case ast.Expr(value=ast.Call() as call) if _called(call) == "expect":
            return _expect_can_fail(call, fixed)
    return False


def _expect_can_fail(call: ast.Call, fixed: set[str]) -> bool:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    value = call.args[1] if len(call.args) > 1 else named.get("value")
    stated = named.get("stated")
    if value is None or stated is None or _same(value, stated):
        return False
    return bool(_depends(value) - fixed)


def _called(call: ast.Call) -> str | None:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return None


def _depends(node: ast.expr) -> set[str]:
    """The names that a value rests on: not builtins, nor names bound within it."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    bound = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    return {n.id for n in names} - bound - _BUILTINS


def _constants(body: list[ast.stmt]) -> set[str]:
    """Names that the cell sets from nothing but constants, so that they cannot be wrong."""
    fixed: set[str] = set()
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                constant = not _depends(value) - fixed and not _calls(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                constant = not _depends(value) - fixed and not _calls(value)
            case _:
                stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
                fixed -= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
                continue
        fixed = fixed | {name} if constant else fixed - {name}
    return fixed


def _calls(node: ast.expr) -> bool:
    return any(isinstance(n, ast.Call) for n in ast.walk(node))


def _same(left: ast.expr, right: ast.expr) -> bool:
    return ast.dump(left) == ast.dump(right)


def _truth(node: ast.expr) -> bool | None:
    """True or False where the expression is so whatever its names hold, else None."""
    match node:
        case ast.Constant(value=value):
            return bool(value)
        case ast.Lambda() | ast.GeneratorExp():
            return True
        case ast.NamedExpr(value=value):
            return _truth(value)
        case ast.Call():
            return _truth_of_call(node)
        case ast.UnaryOp() | ast.BoolOp() | ast.IfExp() | ast.Compare():
            return _truth_of_logic(node)
    # A display with an item in it is true: `assert (x == 1, "message")`.
    items = [*getattr(node, "elts", ()), *getattr(node, "keys", ())]
    certain = any(item and not isinstance(item, ast.Starred) for item in items)
    return True if certain or _says_something(node) else None


def _says_something(node: ast.expr) -> bool:
    parts = node.values if isinstance(node, ast.JoinedStr) else ()
    return any(isinstance(part, ast.Constant) for part in parts)


def _truth_of_call(node: ast.Call) -> bool | None:
    match _called(node), node.args:
        case "bool", [arg]:
            return _truth(arg)
        case "isinstance", [_, ast.Name(id="object")]:
            return True
    return None


def _truth_of_logic(node: ast.UnaryOp | ast.BoolOp | ast.IfExp | ast.Compare) -> bool | None:
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _truth(operand)
            return None if inner is None else not inner
        case ast.BoolOp(op=op, values=values):
            either = isinstance(op, ast.Or)
            return True if either and _complementary(values) else _fold(values, stop=either)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            arms = ((body, False), (orelse, True))
            ends = {_truth(arm) for arm, never in arms if _truth(test) is not never}
            return ends.pop() if len(ends) == 1 else None
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = zip([left, *rights], ops, rights, strict=False)
            return _all([_compared(a, op, b) for a, op, b in sides])
    return None


def _fold(values: list[ast.expr], *, stop: bool) -> bool | None:
    """`or` is settled by one that is true (stop), `and` by one that is false."""
    links = [_truth(value) for value in values]
    if any(link is stop for link in links):
        return stop
    return (not stop) if all(link is (not stop) for link in links) else None


def _all(links: list[bool | None]) -> bool | None:
    if any(link is False for link in links):
        return False
    return True if all(links) else None


def _complementary(values: list[ast.expr]) -> bool:
    """`x or not x`, in any order."""
    denied = [v.operand for v in values if isinstance(v, ast.UnaryOp) and isinstance(v.op, ast.Not)]
    return any(_same(value, other) for value in values for other in denied)


_MIRROR: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE,
    ast.Eq: ast.Eq, ast.NotEq: ast.NotEq,
}  # fmt: skip


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> bool | None:
    if _same(left, right):
        if isinstance(op, ast.Eq | ast.LtE | ast.GtE | ast.Is):
            return True
        return False if isinstance(op, ast.NotEq | ast.Lt | ast.Gt | ast.IsNot) else None
    if isinstance(op, ast.In) and isinstance(right, ast.Tuple | ast.List | ast.Set):
        return True if any(_same(left, item) for item in right.elts) else None
    if type(op) in _MIRROR and _never_negative(right):
        left, op, right = right, _MIRROR[type(op)](), left
    bound = _number(right)
    if bound is None or not _never_negative(left):
        return None
    if isinstance(op, ast.GtE):
        return True if bound <= 0 else None
    return True if bound < 0 and isinstance(op, ast.Gt | ast.NotEq) else None


def _never_negative(node: ast.expr) -> TypeGuard[ast.expr]:
    match node:
        case ast.Call() if _called(node) in {"len", "abs"}:
            return True
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=int(power))):
            return power % 2 == 0
    return False


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) else None
