// Excerpts in the results are read from the pages. Browsers refuse that for pages that are files.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";
