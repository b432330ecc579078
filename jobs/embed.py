"""Write vectors of every clip, or of every moment of it, from any layer of a pre-trained encoder.

python jobs/embed.py small --data.tables RUN/metadata.csv --embed.output vectors
python jobs/embed.py small --data.tables RUN/metadata.csv --embed.level frame --embed.layers 6 --embed.output frames
"""

from raymae.cli import main

if __name__ == "__main__":
    main("embed", __doc__)
