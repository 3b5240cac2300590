"""Commands that get kubeconfigs and edit kubeconfig files."""
