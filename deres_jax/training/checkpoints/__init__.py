# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on Orbax: saved whole, verified before use, restored onto any mesh."""
