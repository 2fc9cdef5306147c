# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a JAX function's values, estimated from its jaxpr on abstract shapes.

Values live from the equation that makes them to the last that reads them. The estimate ignores
fusion, which lowers the peak of a compiled program, and copies, which raise it.
"""

from jax.extend import core


def nbytes(jaxpr: core.Jaxpr) -> int:
  """Returns the peak bytes of one run's values, arguments excluded."""
  last_use = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if _is_var(var)}
  last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if _is_var(var)}
  alive, now, most = {}, 0, 0
  for i, eqn in enumerate(jaxpr.eqns):
    made = {var: _bytes(var) for var in eqn.outvars}
    inside = max((nbytes(j) for j in _inner(eqn)), default=0)
    # The result of an inner jaxpr is the output: one value, not two.
    most = max(most, now + max(inside, sum(made.values())))
    alive |= made
    now += sum(made.values())
    for var in {*eqn.outvars, *filter(_is_var, eqn.invars)} & alive.keys():
      if last_use.get(var, i) <= i:
        now -= alive.pop(var)
  return most


def equations(jaxpr: core.Jaxpr) -> int:
  """Counts equations, nested ones included: the size of the program to compile."""
  return len(jaxpr.eqns) + sum(equations(j) for eqn in jaxpr.eqns for j in _inner(eqn))


def _inner(eqn) -> list:
  jaxprs = core.jaxprs_in_params(eqn.params)
  return [j.jaxpr if isinstance(j, core.ClosedJaxpr) else j for j in jaxprs]


def _is_var(var) -> bool:
  return not isinstance(var, core.Literal)


def _bytes(var) -> int:
  # Tokens and other abstract values have no type.
  return var.aval.size * var.aval.dtype.itemsize if hasattr(var.aval, 'dtype') else 0
