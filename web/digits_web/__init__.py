"""A page to draw digits on, and a JSON API over HTTP: a user of `digits_client` like any other."""
