"""List, verify and clean a storage, and list the models that were trained on a clip.

python jobs/artifacts.py ls --storage runs
python jobs/artifacts.py verify --storage runs
python jobs/artifacts.py gc --storage runs --forget runs/small-pipeline-1a2b3c4d5e6f7a8b --delete
python jobs/artifacts.py trained-on --storage runs --column group --values walk-17
"""

from raymae.cli.artifacts import main

if __name__ == "__main__":
    main(__doc__)
