"""Commands that check the policy, and explain what it decides."""
