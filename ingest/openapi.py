def serve(app, api): pass
