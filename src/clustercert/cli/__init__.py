"""The command line: one module for each command or group, imported when it is used. See `command_table`.

Help and completion import these modules, so each command imports large packages only when it runs.
"""
