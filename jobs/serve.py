"""Serve a finished or registered classifier over HTTP, with a page for uploads, until Ctrl-C.

python jobs/serve.py small --data.tables RUN/metadata.csv
python jobs/serve.py --serve.model models:/raymae-scene-classifier@champion --storage runs --serve.port 8080
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports Ray, so it is imported after main has prepared the environment."""
    from raymae.serving.http.job import serve_classifier

    return serve_classifier(config)


if __name__ == "__main__":
    main(run, __doc__)
