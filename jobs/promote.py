"""Promote the registry's candidate to champion if it is better on the same held-out clips.

python jobs/promote.py small --storage runs
python jobs/promote.py small --storage s3://BUCKET/raymae --tracking.uri http://MLFLOW:5000 --promote.level 0.01
"""

from raymae.cli.main import main
from raymae.pipeline.promote import promote

if __name__ == "__main__":
    main(promote, __doc__)
