"""The routes under /api, for the page and for programs: docs/server.md tells them one by one.

common     what the routes share: the service, a session's slot, which failures are documented
about      what the server is: info, health, metrics
files      served folders, uploads
sessions   open, step, look, leave; events
downloads  the scan, masks, reports
"""
