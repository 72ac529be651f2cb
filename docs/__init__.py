"""The guide: a site of HTML pages made from these documents, the README and the code itself.

`python -m docs` builds it (`make docs`), with Sphinx, from nothing but files of this checkout and of its environment.
`docs.reference` writes the pages that list commands, settings and routes, each from the code that it describes.
Nothing else imports this package, and it is not in the wheel; the built site is, and `ingest/guide.py` serves it.
"""
