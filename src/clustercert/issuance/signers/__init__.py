"""Built-in signers. Each module contains one signer, registered in the entry point group `clustercert.signers`."""
