"""The command line: one module a command group, no logic beyond talk to the user.

Modules here are imported for every command, `--help` included, so they import at the top only what is light; what a
command needs beyond that it imports itself.
"""
