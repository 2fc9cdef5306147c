# SPDX-License-Identifier: Apache-2.0
"""Processes of one run: who they are, how they meet, end and share a mesh.

Imports core and never knows what is trained. `__main__` starts a pod on this machine.
"""
