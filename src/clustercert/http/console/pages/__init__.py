"""The pages of the console. Each page is a module here and a template in `templates`."""
