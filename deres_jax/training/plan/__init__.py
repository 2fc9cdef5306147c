# SPDX-License-Identifier: Apache-2.0
"""Costs of a run before it runs: counted from shapes, or compiled for a machine by name."""
