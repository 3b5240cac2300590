"""The command line. Each command or group of commands has one module, which is imported on first use.

Help and completion also import these modules. Commands therefore import large packages only when they run.
"""
