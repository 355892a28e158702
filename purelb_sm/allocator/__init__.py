"""The allocator's loop: intake → plan → commit → publish; release; leadership.

Decides nothing itself (that is `domain`), and keeps nothing that the book or the cluster does not say.
"""
