"""Export a classifier or a pre-trained encoder to timm's VisionTransformer (safetensors) and to ONNX, each checked.

python jobs/export.py --export.model models:/raymae-scene-classifier@candidate --export.output exported/
ray job submit --working-dir . -- python jobs/export.py …
"""

from raymae.cli import main

if __name__ == "__main__":
    main("export", __doc__)
