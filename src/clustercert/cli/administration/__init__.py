"""Commands that manage domains, projects, users, groups, roles and identities."""
