"""Built-in signers, one module each, registered in the entry point group `clustercert.signers`."""
