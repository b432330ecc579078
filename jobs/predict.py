"""Label audio files with a finished or registered classifier.

python jobs/predict.py --predict.inputs recordings/ --predict.output scenes.csv
ray job submit --working-dir . -- python jobs/predict.py …
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports Ray, which main has to prepare for."""
    from raymae.serving.predict import label_files

    return label_files(config)


if __name__ == "__main__":
    main(run, __doc__)
