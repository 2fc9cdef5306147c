# SPDX-License-Identifier: Apache-2.0
"""Finished runs side by side: reads runs and sweeps, chooses settings, pairs by seed.

Imports sweep and the rooms below. Trains nothing.
"""
