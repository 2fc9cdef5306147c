# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: how they find each other, communicate, end and share a mesh.

Imports core and knows nothing of what is trained. `__main__` starts a pod on this machine.
"""
