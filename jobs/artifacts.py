"""Say what a storage holds, whether it is sound, what can go, and which models have learnt from a clip.

python jobs/artifacts.py ls --storage runs
python jobs/artifacts.py gc --storage runs --forget runs/small-pipeline-1a2b3c4d5e6f7a8b --delete
python jobs/artifacts.py seen --storage runs --column group --values walk-17
"""

from raymae.cli.artifacts import main

if __name__ == "__main__":
    main(__doc__)
