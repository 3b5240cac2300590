"""Commands that log in and out, and the saved logins."""
