# SPDX-License-Identifier: Apache-2.0
"""The memory that a JAX function's values need at once, from its jaxpr on abstract shapes.

Values live from the equation that makes them to the last that reads them. Nothing is fused, which
takes more than a compiled program does, and nothing is copied, which takes less.
"""

from jax.extend import core


def nbytes(jaxpr: core.Jaxpr) -> int:
  """Peak bytes of what one run makes; its arguments are left out."""
  last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if _is_var(var)}
  last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if _is_var(var)}
  alive, now, most = {}, 0, 0
  for i, eqn in enumerate(jaxpr.eqns):
    made = {var: _bytes(var) for var in eqn.outvars}
    inside = max((nbytes(j) for j in _inner(eqn)), default=0)
    # What is made inside ends as an output: it is one value, not two.
    most = max(most, now + max(inside, sum(made.values())))
    alive |= made
    now += sum(made.values())
    for var in {*eqn.outvars, *filter(_is_var, eqn.invars)} & alive.keys():
      if last.get(var, i) <= i:
        now -= alive.pop(var)
  return most


def equations(jaxpr: core.Jaxpr) -> int:
  """The number of equations, those inside others included: the size of what is compiled."""
  return len(jaxpr.eqns) + sum(equations(j) for eqn in jaxpr.eqns for j in _inner(eqn))


def _inner(eqn) -> list:
  found = core.jaxprs_in_params(eqn.params)
  return [j.jaxpr if isinstance(j, core.ClosedJaxpr) else j for j in found]


def _is_var(var) -> bool:
  return not isinstance(var, core.Literal)


def _bytes(var) -> int:
  # Tokens and other abstract values have no type.
  return var.aval.size * var.aval.dtype.itemsize if hasattr(var.aval, 'dtype') else 0
