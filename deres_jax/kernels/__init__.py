# SPDX-License-Identifier: Apache-2.0
"""C++ kernels for CPUs, compiled on the machine that runs them; plain JAX forms define them.

Imports no other room and never knows what calls it.
"""
