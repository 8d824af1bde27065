# SPDX-License-Identifier: Apache-2.0
"""What it costs: `python -m bench` measures this machine and prints medians, ratios, and which goals are met.

Each benchmark is a module with `run(kit, runs) -> Report`. The two sides of a ratio are measured in turn (A B A B ...) in
one run on one machine, so that what else the machine does weighs on both; only the ratios mean anything elsewhere.
"""
