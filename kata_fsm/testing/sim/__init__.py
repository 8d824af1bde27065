# SPDX-License-Identifier: Apache-2.0
"""Programs in the simulated world: what `kata-fsm fuzz` and the property tests run.

programs   a program is data: a list of small tuples; random ones from a seed
universe   one world with its journal, supervisors, shims and clients, in which a program is performed
ops        what each operation does
lives      one supervisor's life: the real runtime, watcher, server and recovery
shims      the host pids of processes, and the lines between them and a supervisor
truth      what must hold, compared with what the world knows
causes     what was done to each sandbox, and which recorded causes that justifies
engine     one program, one trio run, one verdict
shrink     a failing program made minimal
campaign   many programs, counted, in several processes
"""
