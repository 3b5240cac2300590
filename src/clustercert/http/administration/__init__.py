"""The administration API: domains, projects, users, groups, roles, clusters and their credentials."""
