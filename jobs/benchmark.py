"""Measure raymae against baselines that a user could take instead, and plan a cluster from measured rates.

python jobs/benchmark.py all --json benchmark.json
python jobs/benchmark.py plan --hours 5000 --clip-seconds 10 --gpus 8 --cpus 64
"""

from raymae.benchmark.command import main

if __name__ == "__main__":
    main(__doc__)
