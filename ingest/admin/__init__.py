"""The routes and the pages of administration, behind the admin key.

Each `admin_*` module has the routes of one subject under /api/v1/admin; `admin_pages` has the forms under /admin. The
package imports coordinator/, models/ and tasks.publishing, and the modules of ingest/ whose answers it shares.
"""
