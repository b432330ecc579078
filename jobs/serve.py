"""Serve a finished or registered classifier over HTTP, with a page to drop recordings on, until Ctrl-C.

python jobs/serve.py small --storage runs
python jobs/serve.py --serve.model models:/raymae-scene-classifier@champion --storage runs --serve.port 8080
"""

from raymae.cli import main

if __name__ == "__main__":
    main("serve", __doc__)
