# SPDX-License-Identifier: Apache-2.0
"""Which function answers which call. Modules are named, not imported: each is loaded when its first call comes.

A handler takes the agent and the decoded request and returns the response as a dict, or is a generator (see loop.py) that
does. It raises RpcError. What it has changed must be safe to ask for again: a host repeats a call whose answer it lost.
"""

from __future__ import annotations

# service -> method -> (module, function)
HANDLERS: dict[str, dict[str, tuple[str, str]]] = {
    "grpc.Health": {
        "Check": ("rpc_health", "check"),
        "Version": ("rpc_health", "version"),
    },
    "grpc.AgentService": {
        "CreateSandbox": ("rpc_sandbox", "create_sandbox"),
        "DestroySandbox": ("rpc_sandbox", "destroy_sandbox"),
        "CreateContainer": ("rpc_container", "create_container"),
        "StartContainer": ("rpc_container", "start_container"),
        "RemoveContainer": ("rpc_container", "remove_container"),
        "PauseContainer": ("rpc_container", "pause_container"),
        "ResumeContainer": ("rpc_container", "resume_container"),
        "UpdateContainer": ("rpc_container", "update_container"),
        "StatsContainer": ("rpc_stats", "stats_container"),
        "GetOOMEvent": ("rpc_process", "get_oom_event"),
        "ExecProcess": ("rpc_process", "exec_process"),
        "SignalProcess": ("rpc_process", "signal_process"),
        "WaitProcess": ("rpc_process", "wait_process"),
        "TtyWinResize": ("rpc_process", "tty_win_resize"),
        "WriteStdin": ("rpc_stream", "write_stdin"),
        "CloseStdin": ("rpc_stream", "close_stdin"),
        "ReadStdout": ("rpc_stream", "read_stdout"),
        "ReadStderr": ("rpc_stream", "read_stderr"),
        "UpdateInterface": ("rpc_network", "update_interface"),
        "UpdateRoutes": ("rpc_network", "update_routes"),
        "ListInterfaces": ("rpc_network", "list_interfaces"),
        "ListRoutes": ("rpc_network", "list_routes"),
        "AddARPNeighbors": ("rpc_network", "add_arp_neighbors"),
        "GetGuestDetails": ("rpc_guest", "get_guest_details"),
        "SetGuestDateTime": ("rpc_guest", "set_guest_date_time"),
        "ReseedRandomDev": ("rpc_guest", "reseed_random_dev"),
        "OnlineCPUMem": ("rpc_guest", "online_cpu_mem"),
        "CopyFile": ("rpc_files", "copy_file"),
    },
    "katafsm.Extension": {
        "QueryState": ("rpc_query", "query_state"),
        "ListPids": ("rpc_query", "list_pids"),
        "RunPs": ("rpc_query", "run_ps"),
        "WaitProcess2": ("rpc_process", "wait_process2"),
        "ReadStream": ("rpc_stream", "read_stream"),
        "WriteStream": ("rpc_stream", "write_stream"),
        "TakeQuestion": ("rpc_names", "take_question"),
        "GiveAnswer": ("rpc_names", "give_answer"),
        "OpenConnection": ("rpc_connection", "open_connection"),
        "CloseConnection": ("rpc_connection", "close_connection"),
    },
}

# Calls that only wait or look. They end with the session that asked; the others are carried through, because a new session
# will ask whether they were done.
ONLY_WAITING = frozenset(
    (
        "GetOOMEvent",
        "WaitProcess",
        "WaitProcess2",
        "ReadStdout",
        "ReadStderr",
        "ReadStream",
        "WriteStdin",
        "WriteStream",
        "TakeQuestion",
        "OpenConnection",
    )
)

# What the first containers need: loaded while the host is still busy with the sandbox's devices.
PRELOAD = ("rpc_sandbox", "rpc_container", "rpc_process", "rpc_stream")
