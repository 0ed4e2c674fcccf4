"""The short way: onnxruntime and simplejpeg, one image after the other.

python tests/benchmarks/rivals/prototype.py MODEL.onnx FOLDER OUT.csv
"""

import csv
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import simplejpeg


def main(model, folder, out):
    """Predict everything and write the file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    card = json.loads(session.get_modelmeta().custom_metadata_map["tacopress"])
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", *card["classes"]])
        for path in sorted(Path(folder).rglob("*.jpg")):
            pixels = simplejpeg.decode_jpeg(path.read_bytes(), min_height=card["size"], min_width=card["size"])
            pixels = cv2.resize(pixels, (card["size"], card["size"]), interpolation=cv2.INTER_AREA)
            (logits,) = session.run(None, {"images": pixels[None]})
            shares = np.exp(logits[0] - logits.max())
            shares /= shares.sum()
            writer.writerow([path.relative_to(folder), card["classes"][int(shares.argmax())], *shares.tolist()])


if __name__ == "__main__":
    main(*sys.argv[1:])
