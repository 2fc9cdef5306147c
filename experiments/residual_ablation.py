# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations of DeRes, on OneTrans: one sweep, one line per residual.

  python -m deres_jax.sweep --config=experiments/residual_ablation.py --out=DIR \
    --config.data.path=DATA
  python -m deres_jax.compare --sweeps=DIR --out=TABLE.md --reference=DeRes

Groups and their questions (arXiv 2606.07980, section on ablations):
  dual against single paths      identity alone (OneTrans), recall alone (AttnRes, pointwise)
  identity against learnable     the identity path times a learned scalar, vector or matrix
  SiLU against Softmax, ReLU     the scores' non-linearity; negative weights zeroed
  gated against additive         u = g x + (1 - g) r against u = x + r; one gate for all dimensions
  learnable residuals alone      without a recall path, under pre-norm

All use the rates of `baselines.py` at scale 1, with three seeds each. ReLU and zeroed negative
weights have no gradient at score 0, where the others start, so their queries start with standard
deviation 0.02.
"""

from deres_jax import config
from deres_jax import sweep as grid


def get_config(overrides: str = ''):
  c = config.variant_of(__file__, 'baselines.py')
  c.model.connector = 'deres'
  return config.update(c, overrides)


def sweep():
  rows = [
    {'name': 'DeRes'},
    # Dual against single paths.
    {'name': 'identity path alone', 'model.connector': 'prenorm'},
    {'name': 'recall path alone, Softmax', 'model.connector': 'attnres'},
    {'name': 'recall path alone, SiLU', 'model.connector': 'attnres_pointwise'},
    # Identity against learnable.
    {'name': 'dual, scalar residual', 'deres.identity_kind': 'scalar'},
    {'name': 'dual, vector residual', 'deres.identity_kind': 'vector'},
    {'name': 'dual, matrix residual', 'deres.identity_kind': 'matrix'},
    # Scores.
    {'name': 'dual, Softmax (DeRes-S)', 'model.connector': 'deres_s'},
    {'name': 'dual, sigmoid', 'deres.score_fn': 'sigmoid'},
    {'name': 'dual, ReLU', 'deres.score_fn': 'relu', 'deres.query_init': 0.02},
    {
      'name': 'dual, SiLU, negative weights zeroed',
      'deres.score_fn': 'silu_clipped',
      'deres.query_init': 0.02,
    },
    # Fusion.
    {'name': 'dual, additive', 'deres.gate_form': 'additive'},
    {'name': 'dual, additive with gate', 'deres.gate_form': 'additive_gated'},
    {'name': 'dual, scalar gate', 'deres.gate': 'scalar'},
    # Learnable residuals alone.
    {'name': 'scalar residual', 'model.connector': 'scalar'},
    {'name': 'vector residual', 'model.connector': 'vector'},
    {'name': 'matrix residual', 'model.connector': 'matrix'},
  ]
  return grid.product(rows, grid.param('seed', [0, 1, 2]))
