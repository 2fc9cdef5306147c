# SPDX-License-Identifier: Apache-2.0
"""deres_jax: train and scale click-through-rate models in JAX."""

__version__ = '0.1.0'
