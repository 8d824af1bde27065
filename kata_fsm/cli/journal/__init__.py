# SPDX-License-Identifier: Apache-2.0
"""The parts of `kata-fsm journal`: looking at records, judging the whole, keeping it small, taking it elsewhere."""
