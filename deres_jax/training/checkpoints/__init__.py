# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on Orbax: saved atomically, verified before use, restored onto any mesh."""
