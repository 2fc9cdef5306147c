# SPDX-License-Identifier: Apache-2.0
"""Scaling laws of finished sweeps: curves, fits, pages.

Imports compare and the rooms below. Knows no paper.
"""
