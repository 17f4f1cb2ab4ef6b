"""A web page for trying models: ``trial.py`` has its functions, ``page.py`` its layout."""
