"""`dsmr web`: a bundle in a browser, by the page whose sources are examples/web.

node        a Node.js that is new enough
build       the page, built once and kept
site        page and bundle as a folder for any host
serve       page and bundle on this machine
"""
