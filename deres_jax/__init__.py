# SPDX-License-Identifier: Apache-2.0
"""Trains and scales click-through-rate models in JAX."""

__version__ = '0.1.0'
