# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a JAX function, counted from its jaxpr on abstract shapes.

The rule: **a multiply-add is 2 FLOP**, any other floating-point arithmetic is 1 per element.

XLA's own count will not do: `cost_analysis` counts a scanned body once whatever its length, counts
one device or all depending on the object, and misses library matmuls on GPU. The jaxpr has none of
these faults, needs no compilation and no memory, and gives the same number on every platform.

Rules, for a program traced on global shapes:

* matmul: `dot_general` 2 * batch * m * n * k, whatever the dtype; `conv_general_dilated`
  2 * output elements * kernel elements per output (zeros of padding and dilation included).
* elementwise: `ELEMENTWISE`, 1 per output element, `tanh` and `exp` like `add`. Float outputs
  only: index arithmetic and random bits are not FLOP.
* reduction: `REDUCTIONS`, 1 per input element; scatter-add and its kin 1 per update element.
* free: `FREE` (moves, casts, selects, collectives), and primitives without a float output, such
  as comparisons.
* scan: body times length. cond: the branch with the largest total. while: the body once, and
  `unbounded` is set, since the jaxpr does not hold the trip count. shard_map: the body, which is
  the program of one device, times the size of the mesh axes it maps; work that every device
  repeats counts for each. remat: recomputed work counts twice.

Matmuls are also counted by the type of their operands, which decides the peak rate, and by the
bytes of operands and results, each moved once per run: the memory traffic if all elementwise work
is fused into them.

The count is of the program as traced: dead code counts, though XLA will drop it. Any other
primitive with float outputs (Pallas kernels, linear algebra, FFT, callbacks) counts 0 and is named
in `unknown`; the count is then a lower bound.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.extend import core


def _names(text: str) -> frozenset[str]:
  return frozenset(text.split())


ELEMENTWISE = _names("""
  add add_any sub mul div rem neg abs sign max min clamp floor ceil round square integer_pow pow
  one_minus_square
  sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic tanh sinh cosh asinh acosh atanh
  sin cos tan asin acos atan atan2 erf erfc erf_inv lgamma digamma
  """)
REDUCTIONS = _names("""
  reduce_sum reduce_max reduce_min reduce_prod cumsum cumprod cummax cummin cumlogsumexp
  """)
SCATTERS = _names('scatter-add scatter-sub scatter-mul scatter-min scatter-max')
FREE = _names("""
  broadcast_in_dim reshape transpose squeeze expand_dims rev pad concatenate slice split stack
  unstack tile dynamic_slice dynamic_update_slice gather scatter iota sort top_k select_n
  convert_element_type bitcast_convert_type reduce_precision nextafter copy zeros_like empty
  real imag get swap rng_uniform stop_gradient name optimization_barrier device_put
  sharding_constraint layout_constraint reshard pvary psum psum_invariant pmax pmin pbroadcast
  ppermute all_gather all_gather_invariant all_to_all reduce_scatter
  """)
# Updates of a mutable array: arithmetic without an output, so the float test cannot see it.
_REF_UPDATES = frozenset({'addupdate', 'accum_grad_in_ref'})
# Primitives that run one jaxpr once, and the parameter that holds it.
_CALLS = {
  'jit': 'jaxpr',
  'call': 'call_jaxpr',
  'closed_call': 'call_jaxpr',
  'composite': 'jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
  'remat2': 'jaxpr',
  'checkpoint': 'jaxpr',
}


@dataclasses.dataclass(frozen=True)
class Flops:
  """The count of one call of a function, over all devices.

  Attributes:
    total: sum of `by_primitive`.
    by_primitive: FLOP by JAX primitive name, zeros left out.
    unknown: primitives with float outputs that were not counted; if there are any, the count is a
      lower bound.
    unbounded: a while loop is counted as one iteration, so the count is a lower bound.
    matmul_by_dtype: FLOP of matmuls by the wider type of the two operands.
    matmul_bytes: bytes of the operands and results of all matmuls.
  """

  total: int
  by_primitive: Mapping[str, int]
  unknown: frozenset[str]
  unbounded: bool
  matmul_by_dtype: Mapping[str, int]
  matmul_bytes: int

  @property
  def matmul(self) -> int:
    return sum(self.matmul_by_dtype.values())


def count(fn: Callable, *abstract_args) -> Flops:
  """Counts the FLOP of one call `fn(*abstract_args)` by the rules above; compiles nothing.

  Args:
    fn: any traceable function: a Flax `apply`, a gradient, a whole train step. Bind static
      arguments with `functools.partial`.
    abstract_args: pytrees of `jax.ShapeDtypeStruct` or of arrays, with global shapes.

  Raises:
    Whatever tracing `fn` raises on these shapes.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*abstract_args))


def count_jaxpr(jaxpr: core.ClosedJaxpr) -> Flops:
  """Counts the FLOP of one run of a jaxpr."""
  tally = _Tally(Counter(), set(), Counter())
  _walk(jaxpr, 1, tally)
  by_primitive = {name: flop for name, flop in sorted(tally.flop.items()) if flop}
  return Flops(
    total=sum(by_primitive.values()),
    by_primitive=by_primitive,
    unknown=frozenset(tally.unknown),
    unbounded=tally.unbounded,
    matmul_by_dtype=dict(tally.matmul),
    matmul_bytes=tally.moved,
  )


@dataclasses.dataclass
class _Tally:
  flop: Counter
  unknown: set[str]
  matmul: Counter
  moved: int = 0
  unbounded: bool = False


def _walk(jaxpr, times: int, tally: _Tally) -> None:
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
      _walk(params[_CALLS[name]], times, tally)
    elif name == 'scan':
      _walk(params['jaxpr'], times * params['length'], tally)
    elif name == 'while':
      tally.unbounded = True
      _walk(params['cond_jaxpr'], times, tally)
      _walk(params['body_jaxpr'], times, tally)
    elif name == 'cond':
      _add_costliest(params['branches'], times, tally)
    elif name == 'shard_map':
      sizes = [params['mesh'].shape[axis] for axis in params['newly_manual_axes']]
      _walk(params['jaxpr'], times * math.prod(sizes), tally)
    else:
      _add_plain(eqn, times, tally)


def _add_costliest(branches, times: int, tally: _Tally) -> None:
  counts = [count_jaxpr(branch) for branch in branches]
  costliest = max(counts, key=lambda flops: flops.total)
  for name, flop in costliest.by_primitive.items():
    tally.flop[name] += times * flop
  for dtype, flop in costliest.matmul_by_dtype.items():
    tally.matmul[dtype] += times * flop
  tally.moved += times * costliest.matmul_bytes
  # Of all branches: one that looks cheap may just be uncountable.
  for flops in counts:
    tally.unknown |= flops.unknown
    tally.unbounded |= flops.unbounded


def _add_plain(eqn, times: int, tally: _Tally) -> None:
  name = eqn.primitive.name
  gives_float = any(_is(var, jnp.inexact) for var in eqn.outvars)
  gives_complex = any(_is(var, jnp.complexfloating) for var in eqn.outvars)
  if name in FREE:
    return
  if gives_complex or name in _REF_UPDATES:  # complex arithmetic costs more than 1 an element
    tally.unknown.add(name)
  elif name in _MATMULS:
    flop, arrays = _MATMULS[name](eqn), [*eqn.invars[:2], *eqn.outvars]
    tally.flop[name] += times * flop
    wider = jnp.promote_types(*(var.aval.dtype for var in eqn.invars[:2]))
    tally.matmul[str(wider)] += times * flop
    tally.moved += times * sum(var.aval.size * var.aval.dtype.itemsize for var in arrays)
  elif name in SCATTERS:
    tally.flop[name] += times * (eqn.invars[2].aval.size if gives_float else 0)
  elif name in ELEMENTWISE:
    tally.flop[name] += times * (eqn.outvars[0].aval.size if gives_float else 0)
  elif name in REDUCTIONS:
    tally.flop[name] += times * (eqn.invars[0].aval.size if gives_float else 0)
  elif gives_float or any(True for _ in core.jaxprs_in_params(eqn.params)):
    tally.unknown.add(name)


def _is(var, kind) -> bool:
  # Tokens and other abstract values have no dtype.
  return hasattr(var.aval, 'dtype') and jnp.issubdtype(var.aval.dtype, kind)


def _dot_general(eqn) -> int:
  (lhs_contracting, _), _ = eqn.params['dimension_numbers']
  lhs_shape = eqn.invars[0].aval.shape
  return 2 * eqn.outvars[0].aval.size * math.prod(lhs_shape[axis] for axis in lhs_contracting)


def _conv_general_dilated(eqn) -> int:
  out_features_axis = eqn.params['dimension_numbers'].rhs_spec[0]
  kernel_shape = eqn.invars[1].aval.shape  # input features already divided by the groups
  kernel_work = math.prod(kernel_shape) // kernel_shape[out_features_axis]
  return 2 * eqn.outvars[0].aval.size * kernel_work


_MATMULS = {'dot_general': _dot_general, 'conv_general_dilated': _conv_general_dilated}
