"""The web console: pages that show the API's answers, and forms that send requests to the API.

The package is imported only if `console.enabled` is set.
"""
