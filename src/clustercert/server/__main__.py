"""The supervisor's process, which `clustercert serve` becomes if there are several workers."""

from clustercert.server.supervisor import main

main()
