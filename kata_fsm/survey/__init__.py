# SPDX-License-Identifier: Apache-2.0
"""What recovery would do, worked out without changing anything.

`traces` looks for everything on the host that carries our names; `sight` looks at one sandbox; `plan` compares what the
journal believes with what was seen, by the machines alone, and says what would be done; `orphans` are the traces that no
living sandbox accounts for, and `removal` takes them away. Doing a sandbox's plan is its supervisor's work, see `recovery`.
"""
