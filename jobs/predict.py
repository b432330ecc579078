"""Predict the labels of audio files with a finished or registered classifier.

python jobs/predict.py small --data.tables RUN/metadata.csv --predict.inputs recordings/ --predict.output scenes.csv
python jobs/predict.py --predict.model runs/classifier --predict.inputs recordings/ --predict.output scenes.parquet
"""

from typing import Any

from raymae.cli.main import main
from raymae.config import Config


def run(config: Config) -> dict[str, Any]:
    """Run the job; its module imports Ray, so it is imported after main has prepared the environment."""
    from raymae.serving.predict import label_files

    return label_files(config)


if __name__ == "__main__":
    main(run, __doc__)
