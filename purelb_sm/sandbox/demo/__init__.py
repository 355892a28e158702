"""`purelb sandbox demo`: shows the product at work on this machine, checks every claim it makes, and cleans up."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TextIO

from purelb_sm.sandbox.demo.story import NAMESPACE, ClaimFailed, Story
from purelb_sm.sandbox.demo.terminal import Terminal
from purelb_sm.sandbox.launcher import CommandFailed, NotInTime, Options, Sandbox

__all__ = ["demo"]

LOG_LINES = 10
"""How much of each log is shown when the demo fails."""


async def demo(options: Options, stream: TextIO) -> bool:
    """Tells the story on a sandbox of its own. False if a claim did not hold, or the sandbox did not come up."""
    terminal = Terminal(stream)
    terminal.line("A Kubernetes API, nodes with an agent each, and an allocator, all on this machine:")
    sandbox = Sandbox(options, report=terminal.progress)
    try:
        async with sandbox, AsyncExitStack() as stack:
            terminal.progress("ready")
            for one in sandbox.processes():
                terminal.note(f"pid {one.pid:>7}  {one.name}")
            if options.door is not None:
                terminal.note("Not root: the network namespaces below are those of a user namespace of this program.")
            if options.kubeconfig is not None:
                stack.push_async_callback(
                    sandbox.kubectl, "delete", "namespace", NAMESPACE, "--wait=false", check=False
                )
            story = Story(sandbox, terminal)
            try:
                await story.tell()
            except (ClaimFailed, CommandFailed) as failed:
                terminal.line()
                terminal.line(f"The demo has failed: {failed}", "bad")
                _show_logs(sandbox, terminal)
                return False
            terminal.line()
            terminal.line(f"All {story.checked} claims hold.", "heading")
    except (CommandFailed, NotInTime, OSError, RuntimeError) as failed:
        terminal.line(f"The sandbox did not come up: {failed}", "bad")
        return False
    terminal.progress("everything is cleaned up")
    return True


def _show_logs(sandbox: Sandbox, terminal: Terminal) -> None:
    """The ends of the logs, since the files may go with the sandbox."""
    for file in sorted(sandbox.log_path("any").parent.glob("*.log")):
        terminal.heading(f"The end of {file.name}")
        terminal.output("\n".join(file.read_text(errors="replace").splitlines()[-LOG_LINES:]))
