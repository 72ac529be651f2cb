"""The intake: HTTP routes, web pages and the command line of the coordinator.

Each `*_routes` module has the routes of one subject, `public_pages` and admin/ have the pages, commands/ the command
line. Routes read the request, call one function of coordinator/ and shape its answer: no SQL, no arithmetic, no commits
here. The package is the top layer; it may import tasks/, coordinator/, models/ and config/.
"""
